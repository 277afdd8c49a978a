select r.run_id, r.flow_slug as flow, r.output,
       case when r.cancelled_at is not null then 'cancelled' else r.status end as status,
       (select format('step %%s: %%s', f.step_slug, f.error_message) from pgflow.step_states f
        where f.run_id = r.run_id and f.status = 'failed' order by f.failed_at limit 1) as error
from pgflow.runs r
where r.run_id = any (%(run_ids)s::uuid[]) and r.status <> 'started'
