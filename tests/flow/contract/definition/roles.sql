-- Either side's role may define, drive and look after flows.
grant usage on schema check_ to pgnexus_caller, pgnexus_nexus;
create function pg_temp.drive(role text, n int) returns void language plpgsql as $$
declare
  flow text := 'Flow_of_' || role;
begin
  execute format('set local role %I', role);
  perform pgflow.create_flow(flow, max_attempts => 2);
  perform pgflow.add_step(flow, 'list');
  perform pgflow.add_step(flow, 'each', array['list'], step_type => 'map', when_exhausted => 'skip');
  perform pgflow.ensure_flow_compiled(role, pgflow._get_flow_shape(flow));
  perform pgflow.start_flow(flow, '{}', check_.id(n));
  perform check_.complete('list', '[1, 2, 3]', 0, n);
  perform check_.complete('each', '1', 0, n);
  perform check_.fail('each', 'boom', 1, n);
  perform pgflow.requeue_stalled_tasks();
  perform check_.fail('each', 'boom', 1, n);
  perform pgflow.get_run_with_states(check_.id(n));
  perform pgflow.mark_worker_stopped(check_.worker());
  perform pgflow.prune_data_older_than(interval '1 day');
  perform pgflow.delete_flow_and_data(role);
  set local role none;
end
$$;
select pg_temp.drive('pgnexus_caller', 1);
select check_.is(check_.statuses(1), 'list:completed each:skipped', 'by the caller''s role');
select pg_temp.drive('pgnexus_nexus', 2);
select check_.is(check_.statuses(2), 'list:completed each:skipped', 'by the nexus role');
select check_.empty($$select * from pgflow.flows where flow_slug in ('pgnexus_caller', 'pgnexus_nexus')$$,
  'what they deleted is gone');
-- and each may go on with what the other began
select check_.start('Flow_of_pgnexus_caller', '{}', 3);
set local role pgnexus_nexus;
select check_.complete('list', '[]', 0, 3);
reset role;
select check_.is((check_.run(3)).output, '{"each": []}'::jsonb, 'one engine for both');
