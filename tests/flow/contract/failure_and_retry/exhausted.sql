-- The last failure: task, step and run fail with the error, and no message stays.
select pgflow.create_flow('f', max_attempts => 2, base_delay => 1);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'child', array['a']);
select check_.start('f');
select check_.fail('a', 'first');
select check_.is((check_.run()).status, 'started', 'one attempt is left');
select check_.fail('a', 'second');
select check_.rows(
  format($$select status, error_message, attempts_count, failed_at is not null, completed_at, output
  from pgflow.step_tasks where run_id = %L$$, check_.id()),
  $$values ('failed', 'second', 2, true, null::text, null::text)$$, 'the task');
select check_.due((check_.task('a')).failed_at, '0', 'failed_at of the task');
select check_.rows(
  format($$select status, error_message, output, skip_reason, completed_at from pgflow.step_states
  where run_id = %L and step_slug = 'a'$$, check_.id()),
  $$values ('failed', 'second', null::text, null::text, null::text)$$, 'the step');
select check_.due((check_.state('a')).failed_at, '0', 'failed_at of the step');
select check_.rows(
  format($$select status, output, completed_at from pgflow.runs where run_id = %L$$, check_.id()),
  $$values ('failed', null::text, null::text)$$, 'the run');
select check_.due((check_.run()).failed_at, '0', 'failed_at of the run');
select check_.is((check_.state('child')).status, 'created', 'its child never starts');
select check_.is(check_.queued('f'), 0, 'queue');
select check_.is(check_.archived('f'), 1, 'archive');
