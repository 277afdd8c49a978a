-- Monthly partitions of job_results: made ahead of time, dropped when all that is in them may go.
--
-- To attach or drop one takes for a moment a lock that excludes everybody else. Who waits for that lock, and all
-- who come after it, stand in line behind the longest transaction, so nobody here waits for longer than lock_timeout: it
-- is tried again later. (Detaching CONCURRENTLY would not wait, but PostgreSQL refuses it beside a default partition.)

create function pgnexus.ensure_partitions(p_from timestamptz default now(), p_months int default 3) returns int
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp set lock_timeout = '200ms' as $$
declare
  v_month timestamptz;
  v_name text;
  v_low uuid;
  v_high uuid;
  v_made int := 0;
begin
  if not pg_try_advisory_xact_lock(hashtext('pgnexus.partitions')) then
    return 0;  -- somebody else is at it
  end if;
  for v_month in
    select m from generate_series(date_trunc('month', p_from, 'UTC'),
                                  date_trunc('month', p_from, 'UTC') + make_interval(months => p_months),
                                  interval '1 month') as m
  loop
    v_name := 'job_results_' || to_char(v_month at time zone 'UTC', 'YYYY_MM');
    v_low := pgnexus.uuid_floor(v_month);
    v_high := pgnexus.uuid_floor((v_month at time zone 'UTC' + interval '1 month') at time zone 'UTC');
    if to_regclass('pgnexus.' || v_name) is null then
      -- rows that came before their month was made move along with it
      -- an input that is compressed, or moved out of the row, when the answer comes would be written once more
      execute format('create table pgnexus.%I (like pgnexus.job_results including all)
                      with (fillfactor = 45, toast_tuple_target = 4080)', v_name);
      execute format('with moved as (delete from pgnexus.job_results_default
                                     where request_id >= %L and request_id < %L returning *)
                      insert into pgnexus.%I select * from moved', v_low, v_high, v_name);
      execute format('alter table pgnexus.job_results attach partition pgnexus.%I for values from (%L) to (%L)',
                     v_name, v_low, v_high);
      v_made := v_made + 1;
    end if;
  end loop;
  return v_made;
exception when lock_not_available then
  return 0;  -- nothing was made
end
$$;

select pgnexus.ensure_partitions();
