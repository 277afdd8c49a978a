-- Conditions hold for map steps, too, and come before the completion of empty ones.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'each', array['list'], step_type => 'map', required_input_pattern => '{"list": [1]}');
select check_.start('f', '{}', 1);
select check_.start('f', '{}', 2);
select check_.start('f', '{}', 3);
select check_.complete('list', '[2, 1]', 0, 1);
select check_.is(check_.statuses(1), 'list:completed each:started', 'met');
select check_.complete('list', '[2]', 0, 2);
select check_.is(check_.statuses(2), 'list:completed each:skipped', 'unmet');
select check_.is((check_.run(2)).status, 'completed', 'the run ends');
select check_.complete('list', '[]', 0, 3);
select check_.is(check_.statuses(3), 'list:completed each:skipped', 'an empty map whose condition is unmet is skipped');
select check_.is((check_.run(3)).output, null::jsonb, 'without an output');
