-- A failure that comes after the run has failed: the task fails, the message goes, nothing else happens.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b', max_attempts => 9, when_exhausted => 'skip');
select check_.start('f');
select * from check_.claim('f');
select * from pgflow.fail_task(check_.id(), 'a', 0, 'boom');
create temporary table before on commit drop as select to_jsonb(r) as run
  from pgflow.runs r where r.run_id = check_.id();
select check_.is(status, 'failed', 'no retry on a failed run') from pgflow.fail_task(check_.id(), 'b', 0, 'late');
select check_.is((check_.task('b')).status, 'failed', 'the task has failed');
select check_.ok((check_.task('b')).failed_at is not null, 'and has failed_at');
select check_.ok((check_.state('b')).status <> 'skipped', 'its step is not skipped');
select check_.is(check_.queued('f'), 0, 'queue');
select check_.is(to_jsonb(r), run, 'the run is what it was') from before, pgflow.runs r where r.run_id = check_.id();
-- the same where a started task is left
select check_.start('f', '{}', 2);
select * from check_.claim('f');
update pgflow.runs set status = 'failed', failed_at = now() where run_id = check_.id(2);
select check_.is(status, 'failed', 'a started task') from pgflow.fail_task(check_.id(2), 'b', 0, 'late');
select check_.is(count(*), 1, 'its message is archived') from check_.archive('f')
where message ->> 'run_id' = check_.id(2)::text and message ->> 'step_slug' = 'b';
