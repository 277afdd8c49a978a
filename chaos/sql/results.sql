-- Every stored request, and which question it was.
select request_id, status, error ->> 'type' as error, enqueued_at, finished_at, workflow, job_id,
       output ->> 'response' as text, coalesce((output ->> 'cached')::bool, false) as cached,
       coalesce((output ->> 'shared')::bool, false) as shared,
       substring(input -> 'messages' -> -1 ->> 'content' from '^\[([^]]+)\]') as mark,
       cost, coalesce(prompt_tokens, 0) as prompt_tokens, coalesce(completion_tokens, 0) as completion_tokens, attempts
from pgnexus.job_results
