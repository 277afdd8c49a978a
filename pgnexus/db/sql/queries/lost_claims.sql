-- Of the claims that a worker runs, those that it does not hold any more.
select c.run_id, c.attempt, coalesce(r.cancelled_at is not null, false) as cancelled
from unnest(%(run_ids)s::uuid[], %(attempts)s::int[]) as c (run_id, attempt)
left join pgflow.runs r on r.run_id = c.run_id
where not exists (
  select from pgflow.step_tasks t
  where t.run_id = c.run_id and t.task_index = 0 and t.status = 'started' and t.attempts_count = c.attempt
    and t.last_worker_id = %(worker_id)s and r.status = 'started')
