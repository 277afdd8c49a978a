-- A permanently stalled task of a step that may be skipped: the run goes on without it.
select pgflow.create_flow('f', max_attempts => 10);
select pgflow.add_step('f', 'a', when_exhausted => 'skip');
select pgflow.add_step('f', 'b', when_exhausted => 'skip-cascade');
select pgflow.add_step('f', 'of_a', array['a']);
select pgflow.add_step('f', 'of_b', array['b']);
select check_.start('f');
select * from check_.claim('f');
update pgflow.step_tasks set requeued_count = 3 where run_id = check_.id();
select check_.age(step, '10 minutes') from unnest(array['a', 'b']) step;
select pgflow.requeue_stalled_tasks();
select check_.ok((check_.task(step)).permanently_stalled_at is not null,
  'permanently_stalled_at of ' || step) from unnest(array['a', 'b']) step;
select check_.is(check_.statuses(), 'a:skipped b:skipped of_a:started of_b:skipped', 'states');
select check_.is((check_.state('a')).skip_reason, 'handler_failed', 'the reason');
select check_.rows($$select message ->> 'step_slug' from check_.messages('f')$$, $$values ('of_a')$$, 'messages');
select check_.complete('of_a', '1');
select check_.is((check_.run()).output, '{"of_a": 1}'::jsonb, 'the run ends well');
