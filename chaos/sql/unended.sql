-- All that is known of what does not end, and of what it may wait for.
select j.request_id::text, j.status, r.run_id::text as run, r.status as run_status, t.step_slug, t.status as task,
       t.attempts_count, t.not_before, t.message_id, t.last_worker_id::text, t.deferred_until, p.scope, p.parked_at,
       j.agent_id, t.error_message, now()
from pgnexus.job_results j
full join pgflow.runs r on r.run_id = j.request_id
left join pgflow.step_tasks t on t.run_id = coalesce(r.run_id, j.request_id) and t.status in ('queued', 'started')
left join nexus.parked p on p.run_id = j.request_id
where (j.request_id is not null and j.finished_at is null) or r.status = 'started'
