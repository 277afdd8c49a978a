-- A map's output: its tasks' outputs in the order of task_index, NULLs kept.
select check_.root_map();
select check_.start('mapped', '[1, 2, 3, 4, 5]');
select check_.complete('each', '"e"', 4);
select check_.complete('each', null, 1);
select check_.complete('each', 'null', 3);
select check_.complete('each', '0', 0);
select check_.rows(format($$select status, remaining_tasks, initial_tasks, output from pgflow.step_states
  where run_id = %L and step_slug = 'each'$$, check_.id()),
  $$values ('started', 1, 5, null::jsonb)$$, 'no output before the last');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps before the last');
select check_.complete('each', '[]', 2);
select check_.rows(format($$select status, remaining_tasks, initial_tasks, output from pgflow.step_states
  where run_id = %L and step_slug = 'each'$$, check_.id()),
  $$values ('completed', 0, 5, '[0, null, [], null, "e"]'::jsonb)$$, 'the whole');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
select check_.rows($$select input from check_.claim('mapped')$$,
  $$values ('{"each": [0, null, [], null, "e"]}'::jsonb)$$, 'the child''s input');
