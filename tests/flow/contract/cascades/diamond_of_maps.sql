-- A step below two empty maps completes once, and counts once.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', step_type => 'map');
select pgflow.add_step('f', 'b', array['a'], step_type => 'map');
select pgflow.add_step('f', 'c', array['a'], step_type => 'map');
select pgflow.add_step('f', 'd', array['b', 'c']);
select pgflow.add_step('f', 'skipped', array['b', 'c'], forbidden_input_pattern => '{"b": []}');
select check_.start('f', '[]');
select check_.is(check_.statuses(), 'a:completed b:completed c:completed d:started skipped:skipped', 'states');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
select check_.is((check_.state('d')).remaining_deps, 0, 'remaining_deps');
select check_.complete('d', '1');
select check_.is((check_.run()).output, '{"d": 1}'::jsonb, 'output');
