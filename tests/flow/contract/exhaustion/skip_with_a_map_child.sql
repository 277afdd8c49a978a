-- The map child of a skipped step has nothing to do: it completes with [].
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'list', when_exhausted => 'skip');
select pgflow.add_step('f', 'each', array['list'], step_type => 'map');
select pgflow.add_step('f', 'again', array['each'], step_type => 'map');
select pgflow.add_step('f', 'total', array['again']);
select check_.start('f');
select check_.fail('list');
select check_.is(check_.statuses(), 'list:skipped each:completed again:completed total:started', 'steps');
select check_.rows(
  format($$select initial_tasks, remaining_tasks, output from pgflow.step_states
  where run_id = %L and step_slug in ('each', 'again')$$, check_.id()),
  $$values (0, 0, '[]'::jsonb), (0, 0, '[]')$$, 'the maps');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
select check_.rows($$select input from check_.claim('f')$$, $$values ('{"again": []}'::jsonb)$$,
  'the input after them');
-- a skipped map with a map child
select pgflow.create_flow('g', max_attempts => 1);
select pgflow.add_step('g', 'm', step_type => 'map', when_exhausted => 'skip');
select pgflow.add_step('g', 'n', array['m'], step_type => 'map');
select check_.start('g', '[1, 2]', 2);
select check_.fail('m', 'boom', 0, 2);
select check_.is(check_.statuses(2), 'm:skipped n:completed', 'a map of a map');
select check_.is((check_.run(2)).output, '{"n": []}'::jsonb, 'its output');
