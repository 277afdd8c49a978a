-- A cascade of skips: the step itself with its own reason, then those below, parents first, each once.
select check_.listen();
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'z', when_exhausted => 'skip-cascade');
select pgflow.add_step('f', 'y', array['z']);
select pgflow.add_step('f', 'x', array['z']);
select pgflow.add_step('f', 'w', array['y', 'x']);
select pgflow.add_step('f', 'a', array['w']);
select check_.start('f');
select check_.fail('z', 'boom');
select check_.is(check_.payload('step:z:skipped') - 'error_message', jsonb_build_object(
  'event_type', 'step:skipped', 'run_id', check_.id(), 'status', 'skipped', 'step_slug', 'z', 'skip_reason',
  'handler_failed',
  'skipped_at', (check_.state('z')).skipped_at), 'step:skipped of the failed step');
select check_.is(check_.payload('step:' || step || ':skipped'), jsonb_build_object(
  'event_type', 'step:skipped', 'run_id', check_.id(), 'status', 'skipped', 'step_slug', step, 'skip_reason',
  'dependency_skipped',
  'skipped_at', (check_.state(step)).skipped_at), 'step:skipped of ' || step)
from unnest(array['y', 'x', 'w', 'a']) step;
select check_.rows(
  $$select split_part(event,
  ':', 2) from realtime.sent where event like 'step:%:skipped' and event !~ ':[xy]:' order by id$$,
  $$values ('z'), ('w'), ('a')$$, 'parents before children');
select check_.ok(max(id) filter (where event ~ ':[xy]:') < min(id) filter (where event ~ ':w:'),
  'both parents before their child')
from realtime.sent;
select check_.ok(min(id) filter (where event ~ ':[xy]:') > min(id) filter (where event = 'step:z:skipped'),
  'and after their own')
from realtime.sent;
select check_.is(count(*), 8, 'nothing else but run:started, step:z:started and run:completed') from realtime.sent;
select check_.is(event, 'run:completed', 'the run''s end comes last') from realtime.sent order by id desc limit 1;
select check_.is(check_.payload('run:completed') -> 'output', 'null'::jsonb, 'without an output');
