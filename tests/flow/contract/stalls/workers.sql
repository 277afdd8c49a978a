-- Workers register by plain insert and are marked as stopped.
insert into pgflow.workers (worker_id, queue_name, function_name) values (check_.id(1), 'q', 'fn'), (check_.id(2), 'q',
  'fn');
select check_.rows(
  $$select queue_name, function_name, deprecated_at, stopped_at from pgflow.workers where worker_id = check_.id(1)$$,
  $$values ('q', 'fn', null::text, null::text)$$, 'a worker');
select check_.due(started_at, '0', 'started_at') from pgflow.workers where worker_id = check_.id(1);
select check_.due(last_heartbeat_at, '0', 'last_heartbeat_at') from pgflow.workers where worker_id = check_.id(1);
select pgflow.mark_worker_stopped(worker_id => check_.id(1));
select check_.due(stopped_at, '0', 'stopped_at') from pgflow.workers where worker_id = check_.id(1);
select check_.is(stopped_at, null::timestamptz, 'of the other') from pgflow.workers where worker_id = check_.id(2);
select pgflow.mark_worker_stopped(check_.id(77));
select check_.is(count(*), 2, 'an unknown worker is no fault')
  from pgflow.workers where worker_id in (check_.id(1), check_.id(2), check_.id(77));
