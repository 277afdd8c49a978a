-- cascade_resolve_conditions: true while the run may go on, false when it has failed it; nothing twice.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b', array['a'], required_input_pattern => '{"a": 1}');
select pgflow.add_step('f', 'c', array['a'], required_input_pattern => '{"a": 1}', when_unmet => 'fail');
select check_.start('f', '{}', 1);
select check_.is(pgflow.cascade_resolve_conditions(run_id => check_.id(1)), true, 'nothing is ready');
select check_.is(check_.statuses(1), 'a:started b:created c:created', 'and nothing changes');
update pgflow.step_states set remaining_deps = 0 where run_id = check_.id(1) and step_slug = 'b';
select check_.is(pgflow.cascade_resolve_conditions(check_.id(1)), true, 'an unmet skip');
select check_.is(check_.statuses(1), 'a:started b:skipped c:created', 'skips');
select check_.is((check_.run(1)).remaining_steps, 2, 'and counts');
select check_.is(pgflow.cascade_resolve_conditions(check_.id(1)), true, 'again');
select check_.is((check_.run(1)).remaining_steps, 2, 'counts nothing');
update pgflow.step_states set remaining_deps = 0 where run_id = check_.id(1) and step_slug = 'c';
select check_.is(pgflow.cascade_resolve_conditions(check_.id(1)), false, 'an unmet fail');
select check_.is((check_.run(1)).status, 'failed', 'fails the run');
select check_.is((check_.state('c', 1)).error_message, 'Condition not met', 'the error');
select check_.is(check_.queued('f'), 0, 'messages are archived');
