-- A dependency that is named twice is one dependency: the child is not left waiting for a second end of it.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b', array['a', 'a']);
select check_.is((select deps_count from pgflow.steps where step_slug = 'b' and flow_slug = 'f'), 1, 'deps_count');
select check_.start('f');
select check_.complete('a', '1');
select check_.is(check_.statuses(), 'a:completed b:started', 'the child starts');
