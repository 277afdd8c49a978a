with put as (
  insert into pgflow.schedules as s
    (name, flow_slug, cron, time_zone, input, catch_up, next_fire_at, paused_at)
  values (%(name)s, %(flow_slug)s, %(cron)s, %(time_zone)s, cast(%(input)s as text)::jsonb, %(catch_up)s,
          %(next_fire_at)s, case when cast(%(paused)s as boolean) then now() end)
  on conflict (name) do update
  set flow_slug = excluded.flow_slug, cron = excluded.cron, time_zone = excluded.time_zone, input = excluded.input,
      catch_up = excluded.catch_up,
      next_fire_at = case when (s.cron, s.time_zone) is distinct from (excluded.cron, excluded.time_zone)
                            or (s.paused_at is not null and not cast(%(paused)s as boolean))
                          then excluded.next_fire_at else s.next_fire_at end,
      paused_at = case when cast(%(paused)s as boolean) is null then s.paused_at
                       when cast(%(paused)s as boolean) then coalesce(s.paused_at, now()) end,
      last_error = case when (s.flow_slug, s.cron, s.time_zone, s.input)
                          is not distinct from (excluded.flow_slug, excluded.cron, excluded.time_zone, excluded.input)
                        then s.last_error end
  returning s.name
)
select put.name, pg_notify('pgflow_schedules', '') from put
