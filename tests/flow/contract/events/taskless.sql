-- Taskless steps are never told as started; their completion says when they were. Parents before children.
select check_.listen();
select pgflow.create_flow('f');
select pgflow.add_step('f', 'z', step_type => 'map');
select pgflow.add_step('f', 'm', array['z'], step_type => 'map');
select pgflow.add_step('f', 'a', array['m'], step_type => 'map');
select check_.start('f', '[]');
select check_.is(check_.events(), 'run:started step:z:completed step:m:completed step:a:completed run:completed',
  'events');
select check_.is(check_.payload('step:' || step || ':completed'), jsonb_build_object(
  'event_type', 'step:completed', 'run_id', check_.id(), 'status', 'completed', 'step_slug', step, 'output',
  '[]'::jsonb,
  'started_at', (check_.state(step)).started_at, 'completed_at', (check_.state(step)).completed_at),
  'step:completed of ' || step)
from unnest(array['z', 'm', 'a']) step;
select check_.is(check_.payload('run:started') -> 'remaining_steps', '3'::jsonb,
  'run:started comes first and counts all steps');
select check_.is(check_.payload('run:completed') -> 'output', '{"a": []}'::jsonb, 'run:completed');
