-- Unmet with when_unmet => fail: step and run fail with Condition not met.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'guard', required_input_pattern => '{"ok": true}', when_unmet => 'fail');
select check_.is(status, 'failed', 'start_flow returns the failed run')
from pgflow.start_flow('f', '{"ok": false}', check_.id(1));
select check_.is(check_.statuses(1), 'a:created guard:failed', 'nothing was started');
select check_.rows(
  format($$select status, error_message, skip_reason, output, failed_at is not null from pgflow.step_states
  where run_id = %L and step_slug = 'guard'$$, check_.id(1)),
  $$values ('failed', 'Condition not met', null::text, null::jsonb, true)$$, 'the step');
select check_.rows(format($$select status, failed_at is not null, completed_at, output from pgflow.runs
  where run_id = %L$$, check_.id(1)),
  $$values ('failed', true, null::text, null::jsonb)$$, 'the run');
select check_.is(check_.queued('f'), 0, 'no message');
select check_.is(status, 'started', 'a condition that is met')
  from pgflow.start_flow('f', '{"ok": true}', check_.id(2));
select check_.is(check_.statuses(2), 'a:started guard:started', 'starts');
