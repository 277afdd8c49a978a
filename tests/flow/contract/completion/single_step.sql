-- Completing the only step completes the run.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'only');
select check_.start('f', '{"n": 1}');
select * from check_.claim('f');
select check_.rows(
  format($$select run_id, flow_slug, step_slug, task_index, status, attempts_count, output, error_message
    from pgflow.complete_task(run_id => %L, step_slug => 'only', task_index => 0, output => '{"x": 1}')$$, check_.id()),
  format($$values (%L, 'f', 'only', 0, 'completed', 1, '{"x": 1}'::jsonb, null::text)$$, check_.id()),
  'complete_task returns the row');
select check_.due((check_.task('only')).completed_at, '0', 'completed_at of the task');
select check_.rows(
  format($$select status, remaining_tasks, initial_tasks, output, failed_at, skipped_at from pgflow.step_states
  where run_id = %L$$, check_.id()),
  $$values ('completed', 0, 1, '{"x": 1}'::jsonb, null::text, null::text)$$, 'the step');
select check_.due((check_.state('only')).completed_at, '0', 'completed_at of the step');
select check_.rows(
  format($$select status, remaining_steps, output, failed_at from pgflow.runs where run_id = %L$$, check_.id()),
  $$values ('completed', 0, '{"only": {"x": 1}}'::jsonb, null::text)$$, 'the run: output by leaf');
select check_.due((check_.run()).completed_at, '0', 'completed_at of the run');
select check_.is(check_.queued('f'), 0, 'the queue is empty');
select check_.rows($$select msg_id, message ->> 'step_slug' from check_.archive('f')$$,
  format($$values (%s, 'only')$$, (check_.task('only')).message_id), 'the message is archived');
