-- A failure of a step that is not started (any more): only the message is archived.
select pgflow.create_flow('f', max_attempts => 2);
select pgflow.add_step('f', 'm', step_type => 'map', max_attempts => 1, when_exhausted => 'skip');
select pgflow.add_step('f', 'other');
select check_.start('f', '[1, 2, 3]');
select * from check_.claim('f');
select * from pgflow.fail_task(check_.id(), 'm', 1, 'boom');
create temporary table before on commit drop as
select to_jsonb(r) as run, to_jsonb(check_.state('m')) as step from pgflow.runs r where r.run_id = check_.id();
select check_.is(count(*), 1, 'the row is returned') from pgflow.fail_task(check_.id(), 'm', 0, 'late');
select check_.is(to_jsonb(check_.state('m')), step, 'the step') from before;
select check_.is(to_jsonb(check_.run()), run, 'the run') from before;
update pgflow.step_states set status = 'created', remaining_tasks = null, started_at = null
where run_id = check_.id() and step_slug = 'other';
select check_.is(status, 'started', 'no retry of a step that is not started') from pgflow.fail_task(check_.id(),
  'other', 0, 'late');
select check_.is(check_.queued('f'), 0, 'its message is archived');
select check_.is((check_.state('other')).status, 'created', 'its step as it was');
