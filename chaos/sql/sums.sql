-- What the books say that each request came to.
select j.request_id, s.cost, s.prompt_tokens, s.completion_tokens, s.calls
from pgnexus.job_results j cross join lateral nexus.sum_of_calls(j.request_id) s
