select request_id, status, workflow, instance_id, job_id, agent_id, task_type, complexity, priority, model, provider,
       input, output, error, prompt_tokens, completion_tokens, total_tokens, cached_tokens, cost, duration_ms, attempts,
       retry_of, enqueued_at, deadline, finished_at, reasoning_tokens, cache_write_tokens
from pgnexus.job_results
where (%(agent_id)s::text is null or agent_id = %(agent_id)s)
  and (%(task_type)s::text is null or task_type = %(task_type)s)
  and (%(status)s::text is null or status = %(status)s)
  and (%(workflow)s::text is null or workflow = %(workflow)s)
  and (%(since)s::timestamptz is null or enqueued_at >= %(since)s)
  and (%(until)s::timestamptz is null or enqueued_at < %(until)s)
order by enqueued_at desc
limit %(limit)s
