-- Coming back after a stall is no event; stalling for good is a failure like any other.
select check_.listen();
select pgflow.create_flow('f', max_attempts => 10);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b', when_exhausted => 'skip');
select check_.start('f');
select * from check_.claim('f');
update pgflow.step_tasks set requeued_count = 3 where run_id = check_.id() and step_slug = 'b';
select check_.age(step, '10 minutes') from unnest(array['a', 'b']) step;
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'one comes back');
select check_.is(check_.events(), 'run:started step:a:started step:b:started step:b:skipped', 'the other is skipped');
select * from check_.claim('f');
update pgflow.step_tasks set requeued_count = 3 where run_id = check_.id() and step_slug = 'a';
select check_.age('a', '10 minutes');
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'none comes back');
select check_.is(check_.events(),
  'run:started step:a:started step:b:started step:b:skipped step:a:failed run:failed', 'it fails');
select check_.is(check_.payload('step:a:failed') ->> 'error_message', (check_.state('a')).error_message,
  'with the step''s error');
select check_.is(check_.payload('run:failed') ->> 'error_message', (check_.state('a')).error_message,
  'which is the run''s, too');
