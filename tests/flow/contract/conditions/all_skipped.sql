-- Where all steps are skipped at the start, the run is completed at the start.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a', required_input_pattern => '{"a": 1}');
select pgflow.add_step('f', 'b', array['a'], required_input_pattern => '{"a": 1}');
select check_.rows(
  $$select status, output, remaining_steps, completed_at is not null from pgflow.start_flow('f', '{}')$$,
  $$values ('completed', null::jsonb, 0, true)$$, 'the run');
select check_.is(check_.queued('f') + check_.archived('f'), 0, 'no messages');
