-- The pieces of a cascade, called one by one as a client may, come to the same as a completion.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'cond', array['a'], required_input_pattern => '{"a": 1}');
select pgflow.add_step('f', 'each', array['cond'], step_type => 'map');
select pgflow.add_step('f', 'again', array['each'], step_type => 'map');
select pgflow.add_step('f', 'last', array['again']);
select check_.start('f');
select check_.is(pgflow._cascade_force_skip_steps(check_.id(), 'last', 'handler_failed'), 1,
  'the last step is skipped');
update pgflow.step_states set remaining_deps = 0 where run_id = check_.id() and step_slug = 'cond';
select check_.is(pgflow.cascade_resolve_conditions(check_.id()), true, 'conditions');
select check_.is(check_.statuses(), 'a:started cond:skipped each:created again:created last:skipped',
  'after the conditions');
select check_.rows(
  format($$select remaining_deps, initial_tasks from pgflow.step_states
  where run_id = %L and step_slug = 'each'$$, check_.id()),
  $$values (0, 0)$$, 'the map child of a skipped step');
select pgflow.start_ready_steps(check_.id());
select check_.is((check_.state('each')).status, 'created', 'a step without tasks is not started');
select check_.is(pgflow.cascade_complete_taskless_steps(check_.id()), 2, 'taskless steps');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
select check_.is((check_.state('last')).status, 'skipped', 'what is skipped stays skipped');
select pgflow.maybe_complete_run(check_.id());
select check_.is((check_.run()).status, 'started', 'one step is left');
select check_.is(pgflow._cascade_force_skip_steps(check_.id(), 'a', 'handler_failed'), 1, 'only the one that is left');
select pgflow.maybe_complete_run(check_.id());
select check_.rows(format($$select status, remaining_steps, output from pgflow.runs where run_id = %L$$, check_.id()),
  $$values ('completed', 0, null::jsonb)$$, 'the run: its only leaf was skipped');
