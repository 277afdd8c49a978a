-- requeue_stalled_tasks: what was started longer ago than its timeout + 30 s is queued again, its message visible.
select pgflow.create_flow('f', timeout => 60, max_attempts => 10);
select pgflow.add_step('f', 'm', step_type => 'map');
select check_.start('f', '[1, 2, 3]');
select * from check_.claim('f');
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'nobody is late');
select check_.age('m', '87 s', 0);
select check_.age('m', '91 s', 1);
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'one is');
select check_.rows(
  format($$select task_index, status, requeued_count, attempts_count, started_at is null, last_requeued_at is not null,
    permanently_stalled_at from pgflow.step_tasks where run_id = %L order by 1$$, check_.id()),
  $$values (0, 'started', 0, 1, false, false, null::text), (1, 'queued', 1, 1, true, true, null),
  (2, 'started', 0, 1, false, false, null)$$,
  'the tasks');
select check_.due((check_.task('m', 1)).last_requeued_at, '0', 'last_requeued_at');
select check_.ok(check_.visible_at('f', 'm', 1) <= clock_timestamp(), 'its message is visible');
select check_.ok(check_.visible_at('f', 'm', 0) > clock_timestamp(), 'the others'' are not');
select check_.is(check_.queued('f'), 3, 'no message was added or lost');
select check_.is(check_.statuses(), 'm:started', 'the step goes on');
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'once');
select check_.rows($$select task_index, input from check_.claim('f')$$, $$values (1, '2'::jsonb)$$,
  'it can be claimed again');
select check_.is((check_.task('m', 1)).attempts_count, 2, 'as another attempt');
select check_.is((check_.task('m', 1)).requeued_count, 1, 'requeued_count stays');
-- queued and completed tasks are never stalled
select * from pgflow.complete_task(check_.id(), 'm', 0, '1');
update pgflow.step_tasks set queued_at = now() - interval '1 day' where run_id = check_.id() and task_index <> 1;
update pgflow.step_tasks set started_at = now() - interval '1 day', completed_at = now() - interval '1 day'
where run_id = check_.id() and task_index = 0;
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'a completed one is not stalled');
