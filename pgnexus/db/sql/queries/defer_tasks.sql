with given as materialized (
  select array_agg(u.token order by u.place) as tokens,
         array_agg(clock_timestamp() + make_interval(secs => u.seconds) order by u.place) as until
  from unnest(cast(%(tokens)s as uuid[]), cast(%(seconds)s as double precision[]))
       with ordinality as u(token, seconds, place)
)
select accepted.token, asked.deadline
from given g
cross join lateral pgflow.defer_tasks(
  %(worker_id)s, cast(%(run_ids)s as uuid[]), cast(%(steps)s as text[]), cast(%(indexes)s as int[]),
  cast(%(attempts)s as int[]), g.tokens, g.until, cast(%(details)s as text[])::jsonb[]) as accepted(token)
join lateral unnest(g.tokens, g.until) as asked(token, deadline) on asked.token = accepted.token
