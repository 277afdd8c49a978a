-- Empty maps complete one another, passing 0 on, and mix with other steps.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'm1', array['list'], step_type => 'map');
select pgflow.add_step('f', 'm2', array['m1'], step_type => 'map');
select pgflow.add_step('f', 'm3', array['m2'], step_type => 'map');
select pgflow.add_step('f', 'of_m1', array['m1']);
select pgflow.add_step('f', 'join', array['m3', 'of_m1']);
select check_.start('f');
select check_.complete('list', '[]');
select check_.is(check_.statuses(), 'list:completed m1:completed m2:completed m3:completed of_m1:started join:created',
  'states');
select check_.rows(
  format($$select output, initial_tasks, remaining_tasks, started_at is not null, completed_at is not null
  from pgflow.step_states
    where run_id = %L and step_slug like 'm_'$$, check_.id()),
  $$values ('[]'::jsonb, 0, 0, true, true), ('[]', 0, 0, true, true), ('[]', 0, 0, true, true)$$, 'the maps');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps');
select check_.is(count(*), 2, 'no tasks of maps') from pgflow.step_tasks where run_id = check_.id();
select check_.complete('of_m1', '1');
select check_.rows($$select input from check_.claim('f')$$, $$values ('{"m3": [], "of_m1": 1}'::jsonb)$$,
  'the join''s input');
