-- A flow without steps has nothing remaining: its run is completed as it starts, without an output.
select pgflow.create_flow('empty');
select check_.rows(
  $$select status, remaining_steps, output, completed_at is not null from pgflow.start_flow('empty', '{"n": 1}')$$,
  $$values ('completed', 0, null::jsonb, true)$$, 'the run');
