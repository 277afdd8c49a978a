-- The run's output has every leaf.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'root');
select pgflow.add_step('f', 'a', array['root']);
select pgflow.add_step('f', 'b', array['root']);
select pgflow.add_step('f', 'alone');
select check_.start('f');
select check_.complete('root', '0');
select check_.complete('alone', '{"z": null}');
select check_.complete('b', '[]');
select check_.is((check_.run()).status, 'started', 'one leaf is missing');
select check_.complete('a', '"A"');
select check_.is((check_.run()).output, '{"a": "A", "b": [], "alone": {"z": null}}'::jsonb, 'output');
