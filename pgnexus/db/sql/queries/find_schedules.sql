-- xmin is the row's version: it changes with every update, and with nothing else
select s.name, s.flow_slug, s.cron, s.time_zone, s.input, s.catch_up, s.next_fire_at, s.last_fire_at, s.last_run_id,
       s.paused_at, s.created_at, s.last_error, s.xmin::text as version, clock_timestamp() as now
from pgflow.schedules s
where cast(%(name)s as text) is null or s.name = %(name)s
order by s.name
