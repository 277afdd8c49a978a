select distinct case when f.queue_name = 'pgflow_built' then f.flow_slug else coalesce(f.name, f.flow_slug) end as name
from pgflow.flows f
where f.flow_slug <> 'llm_request_workflow'
order by 1
