-- An old worker goes; a running task it had started stays and forgets it.
select check_.sequential();
select check_.start('sequential');
select * from check_.claim('sequential');
update pgflow.workers set started_at = now() - interval '9 days', last_heartbeat_at = now() - interval '8 days'
where worker_id = check_.worker();
select pgflow.prune_data_older_than(interval '7 days');
select check_.empty($$select * from pgflow.workers where worker_id = check_.id(901)$$, 'the worker');
select check_.is((check_.task('first')).status, 'started', 'its task');
select check_.is((check_.task('first')).last_worker_id, null::uuid, 'without the worker');
