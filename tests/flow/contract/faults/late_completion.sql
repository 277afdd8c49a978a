-- A completion that was under way when its run failed does not slip in, not for maps either.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'm', step_type => 'map');
select pgflow.add_step('f', 'child', array['m']);
select check_.start('f', '[1, 2]');
select * from check_.claim('f');
select * from pgflow.fail_task(check_.id(), 'm', 0, 'boom');
select check_.is(status, 'failed', 'the sibling is failed when it reports') from pgflow.complete_task(check_.id(),
  'm', 1, '"late"');
select check_.is((check_.task('m', 1)).output, null::jsonb, 'its output is not taken');
select check_.is(check_.statuses(), 'm:failed child:created', 'states');
select check_.is((check_.run()).status, 'failed', 'the run');
select check_.empty($$select * from check_.claim('f')$$, 'nothing can be claimed');
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'nothing can stall');
