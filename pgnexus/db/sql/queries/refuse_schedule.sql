-- a schedule that this code cannot read; others may, or may mend it: it is looked at again in a minute
update pgflow.schedules s
set last_error = %(error)s, next_fire_at = now() + interval '1 minute'
from (
  select o.name, o.last_error from pgflow.schedules o
  where o.name = %(name)s and o.xmin::text = %(version)s
  for update
) as seen
where s.name = seen.name
returning seen.last_error is distinct from %(error)s as is_news
