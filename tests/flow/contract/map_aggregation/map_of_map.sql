-- A map of a map has as many tasks as its parent had, whatever these made of them.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', step_type => 'map');
select pgflow.add_step('f', 'b', array['a'], step_type => 'map');
select pgflow.add_step('f', 'c', array['b'], step_type => 'map');
select check_.start('f', '[1, 2]');
select check_.rows(
  format($$select step_slug, status, initial_tasks from pgflow.step_states where run_id = %L order by 1$$, check_.id()),
  $$values ('a', 'started', 2), ('b', 'created', null), ('c', 'created', null)$$, 'at the start');
select check_.complete('a', '[1, 1, 1, 1]', 0);
select check_.complete('a', null, 1);
select check_.rows(
  format($$select step_slug, status, initial_tasks, remaining_tasks from pgflow.step_states
  where run_id = %L order by 1$$, check_.id()),
  $$values ('a', 'completed', 2, 0), ('b', 'started', 2, 2), ('c', 'created', null, null)$$,
  'elements are not flattened, NULL is one');
select check_.complete('b', '"x"', 1);
select check_.complete('b', '"y"', 0);
select check_.is((check_.state('c')).initial_tasks, 2, 'the grandchild');
select check_.complete('c', '1', 0);
select check_.complete('c', '2', 1);
select check_.is((check_.run()).output, '{"c": [1, 2]}'::jsonb, 'output');
