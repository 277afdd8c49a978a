select r.run_id, r.started_at, coalesce(r.completed_at, r.failed_at) as ended_at,
       case when r.cancelled_at is not null then 'cancelled' else r.status end as status,
       case when r.status = 'completed' then r.output end as output,
       st.step_slug, st.status as step_status, st.started_at as step_started_at,
       coalesce(st.completed_at, st.failed_at, st.skipped_at) as step_ended_at,
       case when not st.step_slug = any (%(told)s::text[]) then st.output end as step_output,
       st.error_message, st.skip_reason, st.initial_tasks,
       array(select d.dep_slug from pgflow.deps d where d.flow_slug = s.flow_slug and d.step_slug = s.step_slug) as depends_on
from pgflow.runs r
left join pgflow.states_of(r.run_id) st on true
left join pgflow.steps s on s.flow_slug = r.flow_slug and s.step_slug = st.step_slug
where r.run_id = %(run_id)s
order by s.step_index
