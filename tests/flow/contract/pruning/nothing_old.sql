-- With nothing old, nothing goes.
select check_.fan();
select check_.start('fan');
select check_.complete('list', '[1]');
select check_.complete('each', '1', 0);
select check_.complete('total', '1');
select pgflow.prune_data_older_than(interval '1 hour');
select check_.is((check_.run()).status, 'completed', 'the run');
select check_.is(count(*), 3, 'its steps') from pgflow.step_states where run_id = check_.id();
select check_.is(count(*), 3, 'its tasks') from pgflow.step_tasks where run_id = check_.id();
select check_.is(check_.archived('fan'), 3, 'its archive');
