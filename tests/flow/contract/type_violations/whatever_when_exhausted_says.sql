-- Neither when_exhausted nor attempts that are left save a step of the wrong type.
select pgflow.create_flow('f_' || replace(mode, '-', '_'), max_attempts => 5) from unnest(array['fail', 'skip',
  'skip-cascade']) mode;
select pgflow.add_step('f_' || replace(mode, '-', '_'), 'list', when_exhausted => mode) from unnest(array['fail',
  'skip', 'skip-cascade']) mode;
select pgflow.add_step('f_' || replace(mode, '-', '_'), 'each', array['list'], step_type => 'map', when_unmet => 'skip')
from unnest(array['fail', 'skip', 'skip-cascade']) mode;
select check_.start('f_fail', '{}', 1), check_.start('f_skip', '{}', 2), check_.start('f_skip_cascade', '{}', 3);
select check_.complete('list', '{}', 0, n) from generate_series(1, 3) n;
select check_.rows(
  format($$select r.status, s.status, t.status, t.output from pgflow.runs r join pgflow.step_states s using (run_id)
    join pgflow.step_tasks t using (run_id, step_slug) where run_id = %L$$, check_.id(n)),
  $$values ('failed', 'failed', 'failed', '{}'::jsonb)$$, 'run, step and task of flow ' || n)
from generate_series(1, 3) n;
select check_.is((check_.task('list', 0, n)).attempts_count, 1, 'there is no second attempt')
  from generate_series(1, 3) n;
