-- An unmet condition that fails the run.
select check_.listen();
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'guard', required_input_pattern => '{"x": 1}', when_unmet => 'fail');
select check_.start('f');
select check_.is(check_.events(), 'run:started step:guard:failed run:failed', 'events');
select check_.is(check_.payload('step:guard:failed'), jsonb_build_object(
  'event_type', 'step:failed', 'run_id', check_.id(), 'status', 'failed', 'step_slug', 'guard', 'error_message',
  'Condition not met',
  'failed_at', (check_.state('guard')).failed_at), 'step:failed');
select check_.is(check_.payload('run:failed'), jsonb_build_object(
  'event_type', 'run:failed', 'run_id', check_.id(), 'status', 'failed', 'flow_slug', 'f', 'error_message',
  'Condition not met',
  'failed_at', (check_.run()).failed_at), 'run:failed');
