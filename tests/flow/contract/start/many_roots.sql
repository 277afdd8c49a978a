-- All roots start together, in the order of the steps; their children wait for all parents.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'b');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'm', step_type => 'map');
select pgflow.add_step('f', 'join', array['a', 'b', 'm']);
select check_.start('f', '[10, 20]');
select check_.rows(
  format($$select step_slug, status, remaining_tasks, initial_tasks, remaining_deps from pgflow.step_states
    where run_id = %L order by step_slug$$, check_.id()),
  $$values ('a', 'started', 1, 1, 0), ('b', 'started', 1, 1, 0), ('join', 'created', null, 1, 3),
  ('m', 'started', 2, 2, 0)$$,
  'states');
select check_.rows(
  $$select message ->> 'step_slug', message -> 'task_index' from check_.messages('f') order by 1, 2$$,
  $$values ('a', '0'::jsonb), ('b', '0'), ('m', '0'), ('m', '1')$$, 'messages');
select check_.is((check_.run()).remaining_steps, 4, 'remaining_steps');
