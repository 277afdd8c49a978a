-- A retry is no event. The last failure is step:failed, then run:failed; what falls with it is not told.
select check_.listen();
select pgflow.create_flow('f', max_attempts => 2, base_delay => 0);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'beside');
select check_.start('f');
select check_.fail('a', 'first');
select check_.is(check_.events(), 'run:started step:a:started step:beside:started', 'a retry');
select check_.fail('a', 'second');
select check_.is(check_.events(), 'run:started step:a:started step:beside:started step:a:failed run:failed', 'the end');
select check_.is(check_.payload('step:a:failed'), jsonb_build_object(
  'event_type', 'step:failed', 'run_id', check_.id(), 'status', 'failed', 'step_slug', 'a', 'error_message', 'second',
  'failed_at', (check_.state('a')).failed_at), 'step:failed');
select check_.is(check_.payload('run:failed'), jsonb_build_object(
  'event_type', 'run:failed', 'run_id', check_.id(), 'status', 'failed', 'flow_slug', 'f', 'error_message', 'second',
  'failed_at', (check_.run()).failed_at), 'run:failed');
-- late news tell nothing
select * from pgflow.fail_task(check_.id(), 'beside', 0, 'late');
select * from pgflow.complete_task(check_.id(), 'beside', 0, '1');
select check_.is(check_.events(), 'run:started step:a:started step:beside:started step:a:failed run:failed',
  'late news');
