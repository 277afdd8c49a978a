-- Adding a step again changes none of its dependencies.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b');
select pgflow.add_step('f', 'c', array['a']);
select check_.is((pgflow.add_step('f', 'c', array['a', 'b'])).deps_count, 1, 'the old row');
select check_.rows($$select dep_slug from pgflow.deps where flow_slug = 'f' and step_slug = 'c'$$, $$values ('a')$$,
  'with its dependencies');
select check_.start('f');
select check_.complete('a', '1');
select check_.is(check_.statuses(), 'a:completed b:started c:started', 'it waits for the one');
select check_.rows($$select input from check_.claim('f') where step_slug = 'c'$$, $$values ('{"a": 1}'::jsonb)$$,
  'and gets it');
select check_.is((pgflow.add_step('f', 'd', null)).deps_count, 0, 'no dependencies, as NULL');
