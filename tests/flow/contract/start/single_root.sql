-- Starting a run: the run, the state of each step, the first task and its message.
select check_.sequential();
select check_.rows(
  format($$select run_id, flow_slug, status, input, output, remaining_steps, completed_at, failed_at
    from pgflow.start_flow(flow_slug => 'sequential', input => '{"n": 1}', run_id => %L)$$, check_.id()),
  format($$values (%L, 'sequential', 'started',
  '{"n": 1}'::jsonb, null::jsonb, 3, null::text, null::text)$$, check_.id()),
  'start_flow returns the run');
select check_.rows(
  format($$select status, input, remaining_steps from pgflow.runs where run_id = %L$$, check_.id()),
  $$values ('started', '{"n": 1}'::jsonb, 3)$$, 'and stores it');
select check_.due((check_.run()).started_at, '0', 'started_at of the run');
select check_.rows(
  format($$select step_slug, flow_slug, status, remaining_tasks, initial_tasks, remaining_deps, output, error_message, skip_reason
    from pgflow.step_states where run_id = %L order by step_slug$$, check_.id()),
  $$values ('first', 'sequential', 'started', 1, 1, 0, null::jsonb, null::text, null::text),
    ('last', 'sequential', 'created', null, 1, 1, null, null, null),
    ('second', 'sequential', 'created', null, 1, 1, null, null, null)$$, 'states');
select check_.due((check_.state('first')).started_at, '0', 'started_at of the first step');
select check_.due((check_.state('last')).created_at, '0', 'created_at of the last step');
select check_.rows(
  format($$select num_nonnulls(started_at, completed_at, failed_at, skipped_at) from pgflow.step_states
    where run_id = %L and step_slug <> 'first'$$, check_.id()),
  'values (0), (0)', 'the others have no times');
select check_.rows(
  format($$select step_slug, task_index, flow_slug, status, attempts_count, error_message, output, requeued_count,
      started_at, completed_at, failed_at, last_worker_id, last_requeued_at, permanently_stalled_at
    from pgflow.step_tasks where run_id = %L$$, check_.id()),
  $$values ('first', 0, 'sequential', 'queued', 0, null::text, null::text, 0, null::text, null::text, null::text,
    null::text, null::text, null::text)$$, 'one task, queued');
select check_.due((check_.task('first')).queued_at, '0', 'queued_at');
select check_.rows(
  $$select msg_id, read_ct, message from check_.messages('sequential')$$,
  format($$values (%s, 0,
  '{"flow_slug": "sequential", "run_id": "%s", "step_slug": "first", "task_index": 0}'::jsonb)$$,
    (check_.task('first')).message_id, check_.id()), 'its message, whose id the task has');
select check_.ok(vt <= clock_timestamp(), 'visible at once') from check_.messages('sequential');
