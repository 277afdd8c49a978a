-- More than 50 waves of empty maps are refused.
create function pg_temp.chain(flow text, length int) returns void language plpgsql as $$
begin
  perform pgflow.create_flow(flow);
  perform pgflow.add_step(flow, 'm1', step_type => 'map');
  for n in 2..length loop
    perform pgflow.add_step(flow, 'm' || n, array['m' || n - 1], step_type => 'map');
  end loop;
end
$$;
select pg_temp.chain('fits', 49);
select check_.rows($$select status, remaining_steps, output from pgflow.start_flow('fits', '[]')$$,
  $$values ('completed', 0, '{"m49": []}'::jsonb)$$, '49 in a chain');
select pg_temp.chain('too_long', 51);
select check_.throws($$select * from pgflow.start_flow('too_long', '[]')$$, 'P0001',
  'Cascade loop exceeded safety limit of 50 iterations', '51 in a chain');
select check_.is(status, 'started', 'with something to do it runs') from pgflow.start_flow('too_long', '[1]');
-- the limit is of waves, not of steps
select pgflow.create_flow('wide');
select count(pgflow.add_step('wide', 'm' || n, step_type => 'map')) from generate_series(1, 80) n;
select check_.is(status, 'completed', '80 beside each other are one wave') from pgflow.start_flow('wide', '[]');
-- the function by itself
create function pg_temp.ready(flow text, n int) returns void language plpgsql as $$
begin
  perform pgflow.create_flow(flow);
  perform pgflow.add_step(flow, 'm0');
  for i in 1..n loop
    perform pgflow.add_step(flow, 'm' || i, array['m' || i - 1], step_type => 'map');
  end loop;
  perform check_.start(flow, '{}', n);
  update pgflow.step_states set remaining_deps = 0, initial_tasks = 0 where run_id = check_.id(n) and step_slug = 'm1';
end
$$;
select pg_temp.ready('fifty', 50), pg_temp.ready('fifty_one', 51);
select check_.is(pgflow.cascade_complete_taskless_steps(check_.id(50)), 50, '50 waves');
select check_.throws($$select pgflow.cascade_complete_taskless_steps(check_.id(51))$$, 'P0001',
  'Cascade loop exceeded safety limit of 50 iterations', '51 waves');
