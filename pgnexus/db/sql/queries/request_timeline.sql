-- When the parts of a request's way were done; for who may look at both sides.
select j.enqueued_at, r.started_at as consumed_at, a.started_at as asked_at,
       a.started_at + a.duration_ms * interval '1 millisecond' as answered_at, a.provider, a.model,
       coalesce(r.completed_at, r.failed_at) as published_at, j.finished_at, j.priority
from pgnexus.job_results j
left join pgflow.runs r on r.run_id = j.request_id
left join lateral (
  select * from nexus.attempts n where n.request_id = j.request_id order by n.started_at desc limit 1
) a on true
where j.request_id = %(request_id)s
