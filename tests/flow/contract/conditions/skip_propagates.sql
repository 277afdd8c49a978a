-- when_unmet => skip: children lose a dependency, map children have nothing to do, and so on to the fixpoint.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', required_input_pattern => '{"a": true}');
select pgflow.add_step('f', 'b', array['a'], required_input_pattern => '{"a": {}}');
select pgflow.add_step('f', 'c', array['b'], forbidden_input_pattern => '{"b": 1}');
select pgflow.add_step('f', 'each', array['b'], step_type => 'map');
select pgflow.add_step('f', 'each_again', array['each'], step_type => 'map');
select pgflow.add_step('f', 'd', array['a', 'b']);
select pgflow.add_step('f', 'of_maps', array['each_again'], required_input_pattern => '{"each_again": []}');
select check_.start('f', '{"a": false}');
select check_.is(check_.statuses(),
  'a:skipped b:skipped c:started each:completed each_again:completed d:started of_maps:started', 'states');
select check_.rows(
  format($$select step_slug, skip_reason from pgflow.step_states
  where run_id = %L and status = 'skipped' order by 1$$, check_.id()),
  $$values ('a', 'condition_unmet'), ('b', 'condition_unmet')$$, 'each for its own condition');
select check_.is((check_.state('each')).initial_tasks, 0, 'the map child');
select check_.is((check_.state('each')).output, '[]'::jsonb, 'its output');
select check_.is((check_.run()).remaining_steps, 3, 'remaining_steps');
select check_.rows($$select step_slug, input from check_.claim('f') order by 1$$,
  $$values ('c', '{}'::jsonb), ('d', '{}'), ('of_maps', '{"each_again": []}')$$, 'inputs');
