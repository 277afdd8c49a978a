-- maybe_complete_run: at remaining_steps 0, the outputs of completed leaves, NULL if there are none.
select check_.sequential();
select check_.start('sequential');
select pgflow.maybe_complete_run(run_id => check_.id());
select check_.is((check_.run()).status, 'started', 'not while steps remain');
update pgflow.step_states set status = 'completed', remaining_tasks = 0, remaining_deps = 0, completed_at = now(), output = to_jsonb(step_slug)
where run_id = check_.id();
select pgflow.maybe_complete_run(check_.id());
select check_.is((check_.run()).status, 'started', 'the count decides');
update pgflow.runs set remaining_steps = 0 where run_id = check_.id();
select pgflow.maybe_complete_run(check_.id());
select check_.rows(format($$select status, output, remaining_steps from pgflow.runs where run_id = %L$$, check_.id()),
  $$values ('completed', '{"last": "last"}'::jsonb, 0)$$, 'completed');
select check_.due((check_.run()).completed_at, '0', 'completed_at');
-- again: nothing
select pgflow.maybe_complete_run(check_.id());
select check_.is((check_.run()).output, '{"last": "last"}'::jsonb, 'again');
-- a failed run stays failed
select check_.start('sequential', '{}', 2);
update pgflow.runs set status = 'failed', failed_at = now(), remaining_steps = 0 where run_id = check_.id(2);
select pgflow.maybe_complete_run(check_.id(2));
select check_.is((check_.run(2)).status, 'failed', 'a failed run');
