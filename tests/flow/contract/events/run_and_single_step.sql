-- The events of a run of one step: names, order, topic, and every field of the payloads.
select check_.listen();
select pgflow.create_flow('f');
select pgflow.add_step('f', 'only');
select check_.start('f', '{"n": null}');
select check_.is(check_.events(), 'run:started step:only:started', 'at the start');
select check_.is(check_.payload('run:started'), jsonb_build_object(
  'event_type', 'run:started', 'run_id', check_.id(), 'status', 'started', 'flow_slug', 'f', 'input',
  '{"n": null}'::jsonb,
  'remaining_steps', 1, 'started_at', (check_.run()).started_at), 'run:started');
select check_.is(check_.payload('step:only:started'), jsonb_build_object(
  'event_type', 'step:started', 'run_id', check_.id(), 'status', 'started', 'step_slug', 'only',
  'started_at', (check_.state('only')).started_at, 'remaining_tasks', 1, 'remaining_deps', 0), 'step:started');
select * from check_.claim('f');
select check_.is(check_.events(), 'run:started step:only:started', 'a claim is no event');
select check_.complete('only', 'false');
select check_.is(check_.events(), 'run:started step:only:started step:only:completed run:completed', 'at the end');
select check_.is(check_.payload('step:only:completed'), jsonb_build_object(
  'event_type', 'step:completed', 'run_id', check_.id(), 'status', 'completed', 'step_slug', 'only', 'output',
  'false'::jsonb,
  'completed_at', (check_.state('only')).completed_at), 'step:completed');
select check_.is(check_.payload('run:completed'), jsonb_build_object(
  'event_type', 'run:completed', 'run_id', check_.id(), 'status', 'completed', 'flow_slug', 'f', 'output',
  '{"only": false}'::jsonb,
  'completed_at', (check_.run()).completed_at), 'run:completed');
select check_.is(count(*), 4, 'topic pgflow:run:<run_id>, not private') from realtime.sent
where topic = 'pgflow:run:' || check_.id()::text and private is false;
select check_.is(count(*), 4, 'and no others') from realtime.sent;
select check_.is(check_.payload('step:only:started') ->> 'run_id', check_.id()::text, 'run_id as text');
