-- A dependent's condition fails the run in the middle: messages are archived, siblings end.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'running');
select pgflow.add_step('f', 'guard', array['a'], required_input_pattern => '{"a": 1}', when_unmet => 'fail');
select pgflow.add_step('f', 'child', array['guard']);
select check_.start('f');
select check_.complete('a', '2');
select check_.is((check_.task('a')).status, 'completed', 'the task that led there is completed');
select check_.is(check_.statuses(), 'a:completed running:failed guard:failed child:created', 'states');
select check_.is((check_.state('guard')).error_message, 'Condition not met', 'the error');
select check_.is((check_.run()).status, 'failed', 'the run');
select check_.is((check_.task('running')).status, 'failed', 'the sibling''s task');
select check_.is(check_.queued('f'), 0, 'messages are archived');
select check_.is(check_.archived('f'), 2, 'both');
