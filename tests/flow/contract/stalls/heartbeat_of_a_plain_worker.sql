-- A worker that registered by plain insert told no lease: its tasks are judged by time alone.
select pgflow.create_flow('f', max_attempts => 10);
select pgflow.add_step('f', 'a');
select check_.start('f');
select * from check_.claim('f');
update pgflow.workers set last_heartbeat_at = clock_timestamp() where worker_id = check_.worker();
select check_.age('a', '10 minutes');
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'a fresh heartbeat does not count');
-- nor does it need to have one
select * from check_.claim('f');
select check_.age('a', '10 seconds');
update pgflow.workers set last_heartbeat_at = now() - interval '1 day' where worker_id = check_.worker();
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'an old heartbeat does not, either');
