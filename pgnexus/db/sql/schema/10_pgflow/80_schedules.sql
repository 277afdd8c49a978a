-- Schedules: runs that start by the clock. When a schedule fires is computed by its firers (cron and time zones are
-- a library's work), what is due is for the database's clock to say.

create table pgflow.schedules (
  name         text primary key,
  flow_slug    text not null,  -- a bare name, and no foreign key: the newest version at the time, if any is there
  cron         text not null,
  time_zone    text not null default 'UTC',
  input        jsonb not null default 'null',
  catch_up     text not null default 'once',
  next_fire_at timestamptz not null,
  last_fire_at timestamptz,  -- the time for which the last run was started
  last_run_id  uuid,
  paused_at    timestamptz,
  created_at   timestamptz not null default now(),
  last_error   text,         -- of the last firing; null when it started its runs
  constraint name_is_valid check (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}$'),
  constraint flow_slug_is_valid check (pgflow.is_valid_slug(flow_slug)),
  constraint catch_up_is_valid check (catch_up in ('skip', 'once', 'all')),
  constraint next_fire_at_is_finite check (isfinite(next_fire_at))
);
create index schedules_by_time on pgflow.schedules (next_fire_at) where paused_at is null;

-- Fire schedules: start a run for each of their due times (p_due_names and p_due are parallel, any number a schedule)
-- and store when they are next. One firer wins: who saw another version of the row (see find_schedules) than is
-- there now, or finds it locked, leaves it. The id of a run is made of the schedule's name and the time, so that
-- a time that was fired before starts nothing. A schedule that fails holds up no other: its error is kept, it goes on
-- with its next time. Faults that pass by themselves fire nothing at all; the firer comes back.
create function pgflow.fire_schedules(
  p_names text[], p_versions text[], p_next_fire_ats timestamptz[], p_due_names text[], p_due timestamptz[]
) returns table (name text, error text, is_news boolean)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
#variable_conflict use_column
declare
  v_schedule record;
  v_error text;
  v_run_ids uuid[];
  v_inputs jsonb[];
  v_last timestamptz;
begin
  for v_schedule in
    select s.name, s.flow_slug, s.input, s.last_error, p.next_fire_at
    from unnest(p_names, p_versions, p_next_fire_ats) as p (name, version, next_fire_at)
    join pgflow.schedules s on s.name = p.name
    where s.xmin::text = p.version and s.paused_at is null
    order by s.name
    for update of s skip locked
  loop
    v_error := null;
    select array_agg(pgflow.run_id_for('schedule:' || v_schedule.name, t.at) order by d.due),
           array_agg(replace(v_schedule.input::text, '"{scheduled_at}"', to_jsonb(t.at)::text)::jsonb order by d.due),
           max(d.due)
    into v_run_ids, v_inputs, v_last
    from unnest(p_due_names, p_due) as d (name, due)
    cross join lateral (select (to_jsonb(d.due at time zone 'UTC') #>> '{}') || 'Z' as at) as t
    where d.name = v_schedule.name;
    if v_run_ids is not null then
      begin
        perform from pgflow.start_flows(v_schedule.flow_slug, v_inputs, v_run_ids);
      exception when others then
        if left(sqlstate, 2) in ('40', '53', '55', '57', '58') then
          raise;
        end if;
        v_error := left(sqlerrm, 2000);
      end;
    end if;
    update pgflow.schedules s
    set next_fire_at = v_schedule.next_fire_at,
        last_fire_at = case when v_error is null then coalesce(v_last, s.last_fire_at) else s.last_fire_at end,
        last_run_id = case when v_error is null then coalesce(v_run_ids[cardinality(v_run_ids)], s.last_run_id)
                           else s.last_run_id end,
        last_error = case when v_run_ids is null then s.last_error else v_error end
    where s.name = v_schedule.name;
    name := v_schedule.name;
    error := v_error;
    is_news := v_error is not null and v_error is distinct from v_schedule.last_error;
    return next;
  end loop;
end
$$;
