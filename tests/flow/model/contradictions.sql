-- What the tables say against themselves once every run has ended.
select r.run_id, format('run %s', r.status) as what from pgflow.runs r where r.status = 'started'
union all
select r.run_id, format('%s step in a run that is %s: %s', st.status, r.status, st.step_slug)
from pgflow.runs r join pgflow.step_states st using (run_id)
where st.status = 'started' or (r.status = 'completed' and st.status not in ('completed', 'skipped'))
union all
select r.run_id, format('%s task in a run that is %s: %s[%s] of a step that is %s', t.status, r.status,
                        t.step_slug, t.task_index, st.status)
from pgflow.runs r join pgflow.step_tasks t using (run_id) join pgflow.step_states st using (run_id, step_slug)
where t.status in ('queued', 'started') or (st.status = 'completed' and t.status <> 'completed')
union all
select r.run_id, format('remaining_steps %s of a run with %s open ones', r.remaining_steps, count(*))
from pgflow.runs r join pgflow.step_states st using (run_id) where st.status not in ('completed', 'skipped')
group by r.run_id having count(*) <> r.remaining_steps
union all
select st.run_id, format('%s is completed with %s tasks of %s', st.step_slug, count(t.*), st.initial_tasks)
from pgflow.step_states st left join pgflow.step_tasks t using (run_id, step_slug)
where st.status = 'completed' group by st.run_id, st.step_slug, st.initial_tasks
having count(t.*) <> st.initial_tasks
