-- When the step is not started (any more), only the message is archived.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'm', step_type => 'map', when_exhausted => 'skip');
select pgflow.add_step('f', 'other');
select check_.start('f', '[1, 2]');
select * from check_.claim('f');
select * from pgflow.fail_task(check_.id(), 'm', 0, 'boom');
select check_.is((check_.state('m')).status, 'skipped', 'the step was skipped');
select check_.is(count(*), 1, 'the row is returned') from pgflow.complete_task(check_.id(), 'm', 1, '"late"');
select check_.is((check_.state('m')).status, 'skipped', 'it stays skipped');
select check_.is((check_.state('m')).output, null::jsonb, 'without an output');
select check_.is((check_.state('m')).remaining_tasks, null::int, 'and without remaining_tasks');
select check_.is((check_.run()).remaining_steps, 1, 'the run counts it once');
select check_.ok((check_.task('m', 1)).status <> 'completed', 'its task is not completed');
select check_.rows($$select message ->> 'step_slug' from check_.messages('f')$$, $$values ('other')$$,
  'no message of it is left');
-- a message that is there all the same goes to the archive
select * from check_.claim('f');
update pgflow.step_states set status = 'created', remaining_tasks = null, started_at = null
where run_id = check_.id() and step_slug = 'other';
select check_.rows(format($$select status, output from pgflow.complete_task(%L, 'other', 0, '1')$$, check_.id()),
  $$values ('started', null::text)$$, 'the task of a created step');
select check_.is(check_.queued('f'), 0, 'its message is archived');
select check_.is((check_.state('other')).status, 'created', 'its step as it was');
