-- Runs whose ids lie between two: those with a common beginning.
select r.run_id, r.flow_slug as flow, r.started_at
from pgflow.runs r
where r.run_id between %(first)s and %(last)s and r.flow_slug <> 'llm_request_workflow'
order by r.run_id
limit %(limit)s
