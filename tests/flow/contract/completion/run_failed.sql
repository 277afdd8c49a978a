-- Once its run has failed, completing a task changes nothing.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b');
select pgflow.add_step('f', 'after_b', array['b']);
select check_.start('f');
select * from check_.claim('f');
select * from pgflow.fail_task(check_.id(), 'a', 0, 'boom');
select check_.is((check_.run()).status, 'failed', 'the run has failed');
create temporary table before on commit drop as
select to_jsonb(r) as run, (select jsonb_agg(to_jsonb(s) order by s.step_slug) from pgflow.step_states s
  where s.run_id = check_.id()) as steps,
  (select jsonb_agg(to_jsonb(t) order by t.step_slug) from pgflow.step_tasks t where t.run_id = check_.id()) as tasks
from pgflow.runs r where r.run_id = check_.id();
select check_.is(count(*), 1, 'the row is returned') from pgflow.complete_task(check_.id(), 'b', 0, '"late"');
select check_.is((select jsonb_agg(to_jsonb(t) order by t.step_slug) from pgflow.step_tasks t
  where t.run_id = check_.id()), tasks, 'tasks') from before;
select check_.is((select jsonb_agg(to_jsonb(s) order by s.step_slug) from pgflow.step_states s
  where s.run_id = check_.id()), steps, 'steps') from before;
select check_.is((select to_jsonb(r) from pgflow.runs r where r.run_id = check_.id()), run, 'the run') from before;
select check_.is(check_.queued('f'), 0, 'no message is left');
