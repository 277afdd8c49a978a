-- A dependent map: its tasks are known when its parent has completed.
select check_.fan();
select check_.start('fan');
select check_.is((check_.state('each')).initial_tasks, null::int, 'not known yet');
select check_.complete('list', '["a", "b", "c"]');
select check_.rows(
  format($$select status, remaining_tasks, initial_tasks, remaining_deps from pgflow.step_states
  where run_id = %L and step_slug = 'each'$$, check_.id()),
  $$values ('started', 3, 3, 0)$$, 'as many as elements');
select check_.complete('each', '1', 0);
select check_.is((check_.state('each')).remaining_tasks, 2, 'remaining_tasks');
select check_.complete('each', '2', 1);
select check_.complete('each', '3', 2);
select check_.is((check_.state('each')).output, '[1, 2, 3]'::jsonb, 'output');
select check_.complete('total', '6');
select check_.is((check_.run()).output, '{"total": 6}'::jsonb, 'the run''s output');
select check_.is(check_.archived('fan'), 5, 'all messages are archived');
select check_.is(check_.queued('fan'), 0, 'none is left');
