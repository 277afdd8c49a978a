select r.run_id, r.flow_slug as flow, r.started_at, coalesce(r.completed_at, r.failed_at) as ended_at,
       r.remaining_steps as steps_left,
       case when r.cancelled_at is not null then 'cancelled' else r.status end as status,
       (select format('step %%s: %%s', f.step_slug, f.error_message) from pgflow.step_states f
        where f.run_id = r.run_id and f.status = 'failed' order by f.failed_at limit 1) as error
from pgflow.runs r
where r.flow_slug <> 'llm_request_workflow'
  and (%(flow)s::text is null or r.flow_slug = %(flow)s
       or r.flow_slug in (select f.flow_slug from pgflow.flows f where f.name = %(flow)s))
  and (%(status)s::text is null
       or case when r.cancelled_at is not null then 'cancelled' else r.status end = %(status)s)
  and (%(since)s::timestamptz is null or r.started_at >= %(since)s)
  and (%(until)s::timestamptz is null or r.started_at < %(until)s)
order by r.started_at desc, r.run_id desc
limit %(limit)s
