-- Skipping what remains completes the run.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'only', when_exhausted => 'skip');
select check_.start('f');
select check_.fail('only');
select check_.rows(format($$select status, remaining_steps, output, failed_at from pgflow.runs
  where run_id = %L$$, check_.id()),
  $$values ('completed', 0, null::jsonb, null::text)$$, 'the run');
select check_.ok((check_.run()).completed_at is not null, 'completed_at');
