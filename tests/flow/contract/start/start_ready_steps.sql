-- start_ready_steps: created, no dependencies left, initial_tasks > 0; nothing on terminal runs.
select check_.fan();
select check_.start('fan');
select pgflow.start_ready_steps(check_.id());
select check_.is(check_.queued('fan'), 1, 'what is started is not started again');
select check_.is(check_.statuses(), 'list:started each:created total:created', 'nothing was ready');
update pgflow.step_states set remaining_deps = 0 where run_id = check_.id() and step_slug = 'each';
select pgflow.start_ready_steps(run_id => check_.id());
select check_.is((check_.state('each')).status, 'created', 'initial_tasks NULL is not ready');
update pgflow.step_states set initial_tasks = 0 where run_id = check_.id() and step_slug = 'each';
select pgflow.start_ready_steps(check_.id());
select check_.is((check_.state('each')).status, 'created', 'initial_tasks 0 is not to be started');
update pgflow.step_states set initial_tasks = 3 where run_id = check_.id() and step_slug = 'each';
select pgflow.start_ready_steps(check_.id());
select check_.rows(
  format($$select status, remaining_tasks, initial_tasks, remaining_deps from pgflow.step_states
    where run_id = %L and step_slug = 'each'$$, check_.id()), $$values ('started', 3, 3, 0)$$, 'started');
select check_.rows(
  $$select message ->> 'step_slug', message ->> 'task_index' from check_.messages('fan') order by msg_id$$,
  $$values ('list', '0'), ('each', '0'), ('each', '1'), ('each', '2')$$, 'messages in the order of task_index');

-- terminal runs
select check_.sequential();
select check_.start('sequential', '{}', 2);
update pgflow.step_states set remaining_deps = 0 where run_id = check_.id(2) and step_slug = 'last';
update pgflow.runs set status = 'failed', failed_at = now() where run_id = check_.id(2);
select pgflow.start_ready_steps(check_.id(2));
select check_.is((check_.state('last', 2)).status, 'created', 'nothing on a failed run');
update pgflow.runs set status = 'completed', failed_at = null, completed_at = now(), remaining_steps = 0
where run_id = check_.id(2);
select pgflow.start_ready_steps(check_.id(2));
select check_.is((check_.state('last', 2)).status, 'created', 'nothing on a completed run');
select check_.is(check_.queued('sequential'), 1, 'no message but the first step''s');
