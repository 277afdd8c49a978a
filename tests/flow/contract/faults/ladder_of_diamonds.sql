-- Skipping walks each step once, not once a path: 40 diamonds on end have a million million paths.
set local statement_timeout = '60s';
select pgflow.create_flow('ladder', max_attempts => 1);
select pgflow.add_step('ladder', 'top_0', when_exhausted => 'skip-cascade');
do $$
begin
  for n in 1..40 loop
    perform pgflow.add_step('ladder', 'left_' || n, array['top_' || n - 1]);
    perform pgflow.add_step('ladder', 'right_' || n, array['top_' || n - 1]);
    perform pgflow.add_step('ladder', 'top_' || n, array['left_' || n, 'right_' || n]);
  end loop;
end
$$;
select check_.start('ladder', '{}', 1);
select check_.is(pgflow._cascade_force_skip_steps(check_.id(1), 'top_0', 'handler_failed'), 121, 'each step once');
select check_.is((check_.run(1)).remaining_steps, 0, 'and counted once');
select check_.start('ladder', '{}', 2);
select check_.fail('top_0', 'boom', 0, 2);
select check_.rows(
  format($$select status, skip_reason, count(*) from pgflow.step_states
  where run_id = %L group by 1, 2 order by 2$$, check_.id(2)),
  $$values ('skipped', 'dependency_skipped', 120), ('skipped', 'handler_failed', 1)$$, 'by a failure');
select check_.is((check_.run(2)).status, 'completed', 'the run ends');
