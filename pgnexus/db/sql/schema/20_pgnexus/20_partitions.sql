-- Monthly partitions of job_results, made ahead of time.

create function pgnexus.ensure_partitions(p_from timestamptz default now(), p_months int default 3) returns int
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_month timestamptz;
  v_name text;
  v_low uuid;
  v_high uuid;
  v_made int := 0;
begin
  perform pg_advisory_xact_lock(hashtext('pgnexus.ensure_partitions'));
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
end
$$;

select pgnexus.ensure_partitions();
