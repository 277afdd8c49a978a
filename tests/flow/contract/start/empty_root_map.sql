-- A root map over nothing is completed at once, and so is all that follows from it.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'm', step_type => 'map');
select check_.rows(
  format($$select status, output, remaining_steps from pgflow.start_flow('f', '[]', %L)$$, check_.id()),
  $$values ('completed', '{"m": []}'::jsonb, 0)$$, 'the run ends as it starts');
select check_.rows(
  format($$select status, output, remaining_tasks, initial_tasks from pgflow.step_states
  where run_id = %L$$, check_.id()),
  $$values ('completed', '[]'::jsonb, 0, 0)$$, 'the step');
select check_.ok((check_.state('m')).started_at is not null, 'a taskless step has started_at');
select check_.ok((check_.state('m')).completed_at is not null, 'and completed_at');
select check_.ok((check_.run()).completed_at is not null, 'completed_at of the run');
select check_.empty($$select * from pgflow.step_tasks where flow_slug = 'f'$$, 'no tasks');
select check_.is(check_.queued('f') + check_.archived('f'), 0, 'no messages');

-- its single child starts, with an empty list
select check_.root_map();
select check_.start('mapped', '[]', 2);
select check_.is(check_.statuses(2), 'each:completed total:started', 'the child starts');
select check_.is((check_.run(2)).remaining_steps, 1, 'remaining_steps');
select check_.rows($$select step_slug, input from check_.claim('mapped')$$,
  $$values ('total', '{"each": []}'::jsonb)$$, 'its input');
