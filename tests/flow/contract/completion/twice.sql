-- Completing again changes nothing, and still returns the row.
select check_.root_map();
select check_.start('mapped', '[1, 2]');
select check_.complete('each', '"one"', 0);
select check_.rows(
  format($$select status, output from pgflow.complete_task(%L, 'each', 0, '"other"')$$, check_.id()),
  $$values ('completed', '"one"'::jsonb)$$, 'the row as it was');
select check_.is((check_.state('each')).remaining_tasks, 1, 'counted once');
select check_.complete('each', '"two"', 1);
select check_.is((check_.state('each')).output, '["one", "two"]'::jsonb, 'the first output counts');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
-- now the step is completed, too
select check_.rows(
  format($$select status, output from pgflow.complete_task(%L, 'each', 1, '"late"')$$, check_.id()),
  $$values ('completed', '"two"'::jsonb)$$, 'of a completed step');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps again');
select check_.is((check_.state('each')).output, '["one", "two"]'::jsonb, 'the step''s output again');
select check_.complete('total', '3');
select check_.rows(
  format($$select status, output from pgflow.complete_task(%L, 'total', 0, '4')$$, check_.id()),
  $$values ('completed', '3'::jsonb)$$, 'of a completed run');
select check_.is((check_.run()).output, '{"total": 3}'::jsonb, 'the run''s output');
select check_.is((check_.run()).remaining_steps, 0, 'remaining_steps at the end');
