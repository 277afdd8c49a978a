-- A type violation: step:failed with the error; run:failed without one.
select check_.listen();
select check_.fan();
select check_.start('fan');
select check_.complete('list', '{"a": 1}');
select check_.is(check_.events(), 'run:started step:list:started step:list:failed run:failed', 'events');
select check_.is(check_.payload('step:list:failed'), jsonb_build_object(
  'event_type', 'step:failed', 'run_id', check_.id(), 'status', 'failed', 'step_slug', 'list',
  'error_message', '[TYPE_VIOLATION] Produced object instead of array', 'failed_at', (check_.state('list')).failed_at),
  'step:failed');
select check_.is(check_.payload('run:failed'), jsonb_build_object(
  'event_type', 'run:failed', 'run_id', check_.id(), 'status', 'failed', 'flow_slug', 'fan',
  'failed_at', (check_.run()).failed_at),
  'run:failed has no error_message');
