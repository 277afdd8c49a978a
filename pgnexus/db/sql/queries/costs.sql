select model, provider, agent, task_type, complexity, day, hour, outcome, calls, prompt_tokens, completion_tokens, cached_tokens,
       cache_write_tokens, reasoning_tokens, cost, estimated_cost, calls_of_unknown_cost, estimated_calls
from nexus_api.costs(%(since)s, %(until)s, %(by)s::text[], %(agent_id)s)
