-- last_worker_id points to a worker, and is forgotten with him.
select check_.sequential();
select check_.start('sequential');
select * from check_.claim('sequential');
select check_.is((check_.task('first')).last_worker_id, check_.worker(), 'the worker of the claim');
delete from pgflow.workers where worker_id = check_.worker();
select check_.is((check_.task('first')).last_worker_id, null::uuid, 'set null with the worker');
select check_.is((check_.task('first')).status, 'started', 'the task itself stays');
-- a worker the table does not know
select check_.start('sequential', '{}', 2);
select check_.throws(
  $$select * from pgflow.start_tasks('sequential', array[(check_.task('first', 0, 2)).message_id], check_.id(999))$$,
  '23503', null, 'a worker that never registered');
