-- A map that is skipped by one task: sibling messages are archived, the run counts it once.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'm', step_type => 'map', when_exhausted => 'skip');
select pgflow.add_step('f', 'beside');
select pgflow.add_step('f', 'child', array['m']);
select check_.start('f', '[1, 2, 3, 4]');
select * from check_.claim('f');
select * from pgflow.complete_task(check_.id(), 'm', 0, '"zero"');
select * from pgflow.fail_task(check_.id(), 'm', 1, 'boom');
select check_.rows(
  format($$select status, skip_reason, error_message, remaining_tasks, output from pgflow.step_states
  where run_id = %L and step_slug = 'm'$$, check_.id()),
  $$values ('skipped', 'handler_failed', 'boom', null::int, null::jsonb)$$,
  'the step: what was done of it is no output');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps');
select check_.rows($$select message ->> 'step_slug' from check_.messages('f') order by 1$$,
  $$values ('beside'), ('child')$$, 'no sibling message is left');
select check_.is(count(*), 4, 'they are archived') from check_.archive('f') where message ->> 'step_slug' = 'm';
-- the siblings come too late, whatever they bring
select check_.is(count(*), 1, 'a sibling that fails') from pgflow.fail_task(check_.id(), 'm', 2, 'boom, too');
select check_.is(count(*), 1, 'a sibling that completes') from pgflow.complete_task(check_.id(), 'm', 3, '"three"');
select check_.is((check_.state('m')).error_message, 'boom', 'the first error stays');
select check_.is((check_.run()).remaining_steps, 2, 'counted once');
select check_.is((check_.state('child')).remaining_deps, 0, 'the child''s deps, too');
select check_.is((check_.run()).status, 'started', 'the run goes on');
select check_.complete('beside', '1');
select check_.complete('child', '2');
select check_.is((check_.run()).output, '{"beside": 1, "child": 2}'::jsonb, 'and ends well');
