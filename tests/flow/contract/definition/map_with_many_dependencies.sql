-- A map step has at most one dependency.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b');
select pgflow.add_step('f', 'c');
select check_.throws(
  $$select pgflow.add_step('f', 'm', array['a', 'b'], step_type => 'map')$$, 'P0001',
  'Map step "m" can have at most one dependency, but 2 were provided: a, b', 'two dependencies');
select check_.throws(
  $$select pgflow.add_step('f', 'other', array['c', 'a', 'b'], step_type => 'map')$$, 'P0001',
  'Map step "other" can have at most one dependency, but 3 were provided: c, a, b', 'three, in the order given');
select check_.is(count(*), 3, 'no map was added') from pgflow.steps where flow_slug = 'f';
select check_.empty($$select * from pgflow.deps where flow_slug = 'f'$$, 'nor its dependencies');
