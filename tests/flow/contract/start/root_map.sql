-- A root map has as many tasks as its input has elements; a map of it is not known yet.
select check_.root_map();
select pgflow.add_step('mapped', 'again', array['each'], step_type => 'map');
select check_.start('mapped', '["a", null, {"x": []}]');
select check_.rows(
  format($$select step_slug, status, remaining_tasks, initial_tasks, remaining_deps from pgflow.step_states
    where run_id = %L order by step_slug$$, check_.id()),
  $$values ('again', 'created', null, null, 1), ('each', 'started', 3, 3, 0), ('total', 'created', null::int, 1, 1)$$,
  'states');
select check_.rows(
  format($$select task_index, status, attempts_count from pgflow.step_tasks where run_id = %L and step_slug = 'each'
    order by task_index$$, check_.id()),
  $$values (0, 'queued', 0), (1, 'queued', 0), (2, 'queued', 0)$$, 'tasks');
select check_.rows(
  $$select msg_id, message from check_.messages('mapped')$$,
  format($$select message_id, jsonb_build_object('flow_slug', flow_slug, 'run_id', run_id, 'step_slug', step_slug,
    'task_index', task_index) from pgflow.step_tasks where run_id = %L order by message_id$$, check_.id()),
  'each task has its message');
select check_.is(check_.queued('mapped'), 3, 'three messages');
