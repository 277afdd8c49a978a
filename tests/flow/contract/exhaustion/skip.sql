-- when_exhausted => skip: the step is skipped as handler_failed, the run goes on.
select pgflow.create_flow('f', max_attempts => 2);
select pgflow.add_step('f', 'a', when_exhausted => 'skip');
select pgflow.add_step('f', 'child', array['a']);
select pgflow.add_step('f', 'grandchild', array['child']);
select check_.start('f');
select check_.fail('a', 'first');
select check_.is((check_.state('a')).status, 'started', 'not before the last attempt');
select check_.fail('a', 'second');
select check_.rows(
  format($$select status, skip_reason, error_message, remaining_tasks, output, completed_at, failed_at
  from pgflow.step_states
    where run_id = %L and step_slug = 'a'$$, check_.id()),
  $$values ('skipped', 'handler_failed', 'second', null::int, null::text, null::text, null::text)$$, 'the step');
select check_.due((check_.state('a')).skipped_at, '0', 'skipped_at');
select check_.rows(
  format($$select status, error_message, attempts_count from pgflow.step_tasks
  where run_id = %L and step_slug = 'a'$$, check_.id()),
  $$values ('failed', 'second', 2)$$, 'its task');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps - 1');
select check_.is(check_.statuses(), 'a:skipped child:started grandchild:created', 'the child starts');
select check_.is((check_.state('child')).remaining_deps, 0, 'remaining_deps of the child');
select check_.is((check_.state('grandchild')).remaining_deps, 1, 'remaining_deps of the grandchild');
select check_.rows($$select step_slug, input, flow_input from check_.claim('f')$$, $$values ('child',
  '{}'::jsonb, null::jsonb)$$, 'without its input');
select check_.complete('child', '1');
select check_.complete('grandchild', '2');
select check_.is((check_.run()).status, 'completed', 'the run');
select check_.is((check_.run()).output, '{"grandchild": 2}'::jsonb, 'its output');
select check_.is(check_.queued('f'), 0, 'queue');
