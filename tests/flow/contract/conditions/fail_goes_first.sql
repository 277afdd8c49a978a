-- Of several unmet steps, fail goes before skip, and of those the lowest step_index.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'skipped', required_input_pattern => '{"x": 1}', when_unmet => 'skip');
select pgflow.add_step('f', 'zz_first_to_fail', required_input_pattern => '{"x": 1}', when_unmet => 'fail');
select pgflow.add_step('f', 'aa_second_to_fail', required_input_pattern => '{"x": 1}', when_unmet => 'fail');
select check_.start('f');
select check_.is((check_.run()).status, 'failed', 'the run');
select check_.rows(
  format($$select step_slug, error_message from pgflow.step_states
  where run_id = %L and status = 'failed'$$, check_.id()),
  $$values ('zz_first_to_fail', 'Condition not met')$$, 'the lowest step_index has failed, it alone');
select check_.is((check_.state('skipped')).status, 'created', 'nothing is skipped any more');
