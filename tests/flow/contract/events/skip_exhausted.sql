-- when_exhausted => skip: one step:skipped, whatever its siblings do later; the child starts after it.
select check_.listen();
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'm', step_type => 'map', when_exhausted => 'skip');
select pgflow.add_step('f', 'child', array['m']);
select check_.start('f', '[1, 2]');
select check_.fail('m', 'boom', 1);
select * from pgflow.complete_task(check_.id(), 'm', 0, '1');
select * from pgflow.fail_task(check_.id(), 'm', 0, 'boom');
select check_.is(check_.events(), 'run:started step:m:started step:m:skipped step:child:started', 'events');
select check_.is(check_.payload('step:m:skipped') ->> 'skip_reason', 'handler_failed', 'the reason');
