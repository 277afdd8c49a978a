with resumed as (
  update pgflow.schedules s set paused_at = null, next_fire_at = %(next_fire_at)s
  where s.name = %(name)s and s.xmin::text = %(version)s
  returning s.name
)
select resumed.name, pg_notify('pgflow_schedules', '') from resumed
