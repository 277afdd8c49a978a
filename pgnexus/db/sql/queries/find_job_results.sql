select request_id, status, workflow, instance_id, job_id, agent_id, task_type, complexity, priority, model, provider,
       input, output, error, prompt_tokens, completion_tokens, total_tokens, cached_tokens, cost, duration_ms, attempts,
       retry_of, enqueued_at, deadline, finished_at, reasoning_tokens, cache_write_tokens
from pgnexus.job_results
where request_id = any (%(request_ids)s::uuid[])
  and (finished_at is not null or not %(ended)s)
