with paused as (
  update pgflow.schedules s set paused_at = coalesce(s.paused_at, now()) where s.name = %(name)s returning s.name
)
select paused.name, pg_notify('pgflow_schedules', '') from paused
