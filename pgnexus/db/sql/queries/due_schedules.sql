-- what is due, and what will be before anybody looks again
select s.name, s.cron, s.time_zone, s.catch_up, s.next_fire_at, s.xmin::text as version, now() as now
from pgflow.schedules s
where s.paused_at is null and s.next_fire_at <= now() + make_interval(secs => %(horizon)s)
order by s.next_fire_at
limit %(limit)s
