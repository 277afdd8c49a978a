-- when_unmet => skip-cascade: everything downstream is skipped as dependency_skipped.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', required_input_pattern => '{"a": true}', when_unmet => 'skip-cascade');
select pgflow.add_step('f', 'b');
select pgflow.add_step('f', 'child', array['a'], when_unmet => 'fail', required_input_pattern => '{"a": 1}');
select pgflow.add_step('f', 'each', array['a'], step_type => 'map');
select pgflow.add_step('f', 'join', array['child', 'b']);
select check_.start('f');
select check_.rows(
  format($$select step_slug, status, skip_reason from pgflow.step_states where run_id = %L order by 1$$, check_.id()),
  $$values ('a', 'skipped', 'condition_unmet'), ('b', 'started', null), ('child', 'skipped', 'dependency_skipped'),
    ('each', 'skipped', 'dependency_skipped'), ('join', 'skipped', 'dependency_skipped')$$, 'states');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
select check_.complete('b', '1');
select check_.is((check_.run()).status, 'completed', 'the run');
select check_.is((check_.run()).output, null::jsonb, 'no leaf has completed');
