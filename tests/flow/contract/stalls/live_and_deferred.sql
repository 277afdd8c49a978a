-- Tasks of a worker that gives signs of life within the lease it told, and tasks that wait for an answer, are not stalled.
select pgflow.create_flow('f', max_attempts => 10);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'waits');
select check_.start('f');
select * from check_.claim('f');
select pgflow.defer_tasks(check_.worker(), array[check_.id()], array['waits'], array[0], array[1], array[check_.id(55)],
  array[now() + interval '1 day'], array['{"kind": "signal"}'::jsonb]);
update pgflow.workers set lease = '12 seconds', last_heartbeat_at = clock_timestamp() where worker_id = check_.worker();
select check_.age(step, '1 hour') from unnest(array['a', 'waits']) step;
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'the worker lives');
update pgflow.workers set last_heartbeat_at = now() - interval '13 seconds' where worker_id = check_.worker();
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'its lease is over');
select check_.is((check_.task('a')).status, 'queued', 'its task is had again');
select check_.is((check_.task('waits')).status, 'started', 'the deferred one waits on');
select * from check_.claim('f');
update pgflow.workers set last_heartbeat_at = clock_timestamp(), stopped_at = clock_timestamp() where worker_id = check_.worker();
select check_.age('a', '1 hour');
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'a worker that was stopped does not live');
