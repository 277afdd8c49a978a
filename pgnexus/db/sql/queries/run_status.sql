select r.run_id, r.flow_slug as flow, r.started_at, coalesce(r.completed_at, r.failed_at) as ended_at,
       r.remaining_steps as steps_left,
       case when r.cancelled_at is not null then 'cancelled' else r.status end as status,
       (select format('step %%s: %%s', f.step_slug, f.error_message) from pgflow.step_states f
        where f.run_id = r.run_id and f.status = 'failed' order by f.failed_at limit 1) as error,
       st.step_slug, s.step_type as kind, st.status as step_status, st.initial_tasks as tasks_total,
       coalesce(t.done, 0)::int as tasks_done, coalesce(t.running, 0)::int as tasks_running,
       coalesce(t.attempts, 0)::int as attempts, coalesce(st.error_message, t.error) as step_error, st.skip_reason,
       st.started_at as step_started_at, coalesce(st.completed_at, st.failed_at, st.skipped_at) as step_ended_at,
       t.waits_for, t.waits_until, t.progress,
       array(select d.dep_slug from pgflow.deps d where d.flow_slug = s.flow_slug and d.step_slug = s.step_slug
             order by d.dep_slug) as depends_on
from pgflow.runs r
left join pgflow.states_of(r.run_id) st on true
left join pgflow.steps s on s.flow_slug = r.flow_slug and s.step_slug = st.step_slug
left join lateral (
  select count(*) filter (where t.status = 'completed') as done,
         count(*) filter (where t.status = 'started' and t.deferred_until is null) as running,
         sum(t.attempts_count) as attempts,
         max(t.error_message) filter (where t.status <> 'completed') as error,
         max(t.deferral ->> 'kind') filter (where t.deferred_until is not null) as waits_for,
         min(t.deferred_until) as waits_until,
         jsonb_object_agg(t.task_index, t.progress) filter (where t.progress is not null) as progress
  from pgflow.step_tasks t where t.run_id = st.run_id and t.step_slug = st.step_slug
) t on true
where r.run_id = %(run_id)s
order by s.step_index
