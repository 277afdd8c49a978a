-- A map as a leaf: its array is the run's output, also when it is empty or all NULL.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'each', array['list'], step_type => 'map');
select check_.start('f', '{}', 1);
select check_.complete('list', '[1, 2]', 0, 1);
select check_.complete('each', null, 0, 1);
select check_.complete('each', null, 1, 1);
select check_.is((check_.run(1)).output, '{"each": [null, null]}'::jsonb, 'all NULL');
select check_.start('f', '{}', 2);
select check_.complete('list', '[]', 0, 2);
select check_.is((check_.run(2)).status, 'completed', 'over nothing the run ends with the list');
select check_.is((check_.run(2)).output, '{"each": []}'::jsonb, 'empty');
select check_.start('f', '{}', 3);
select check_.complete('list', '[9]', 0, 3);
select check_.complete('each', '"only"', 0, 3);
select check_.is((check_.run(3)).output, '{"each": ["only"]}'::jsonb, 'one element is an array, too');
