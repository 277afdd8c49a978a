-- step:skipped with its reason; the steps that start because of it come later.
select check_.listen();
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', required_input_pattern => '{"a": 1}');
select pgflow.add_step('f', 'b', array['a'], required_input_pattern => '{"a": 1}');
select pgflow.add_step('f', 'c', array['b']);
select pgflow.add_step('f', 'each', array['b'], step_type => 'map');
select check_.start('f');
select check_.is(check_.events(),
  'run:started step:a:skipped step:b:skipped step:each:completed step:c:started', 'events');
select check_.is(check_.payload('step:' || step || ':skipped'), jsonb_build_object(
  'event_type', 'step:skipped', 'run_id', check_.id(), 'status', 'skipped', 'step_slug', step, 'skip_reason',
  'condition_unmet',
  'skipped_at', (check_.state(step)).skipped_at), 'step:skipped of ' || step)
from unnest(array['a', 'b']) step;
