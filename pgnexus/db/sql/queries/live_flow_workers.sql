-- How many processes run flows, whatever their language; the nexus's own workflow aside.
select count(*)::int as workers
from pgflow.workers w
where w.queue_name <> 'llm_request_workflow' and w.stopped_at is null
  and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, make_interval(secs => %(lease)s))
