-- For tests: what can run now (busy, by name, null when nothing can), and what waits for a time or for somebody.
with flow_queues as (
  select pgflow.queue_of(f.flow_slug) as queue,
         sum(case when f.paused_at is null then 0 else (
           select count(*) from pgflow.step_tasks t
           where t.flow_slug = f.flow_slug and t.status = 'queued' and t.message_id is not null) end) as paused
  from pgflow.flows f group by 1
), queues as (
  select m.queue, m.depth - m.ready as hidden, coalesce(f.paused, 0) as paused,
         greatest(m.ready - coalesce(f.paused, 0), 0) as ready
  from nexus_api.queue_metrics() m left join flow_queues f on f.queue = m.queue
  where f.queue is not null or m.queue in ('ai_requests_interactive', 'ai_requests', 'ai_requests_batch', 'ai_results')
), tasks as (
  select count(*) filter (where t.status = 'started' and t.deferred_until is null) as running,
         count(*) filter (where t.not_before <= clock_timestamp() or t.deferred_until <= clock_timestamp()) as due,
         count(*) filter (where t.not_before > clock_timestamp()) as later,
         count(*) filter (where t.deferred_until is not null and t.deferral ->> 'kind' = 'llm') as llm,
         count(*) filter (where t.deferred_until is not null and coalesce(t.deferral ->> 'kind', '') <> 'llm') as signals
  from pgflow.step_tasks t where t.status in ('queued', 'started')
), requests as (
  select count(*) filter (where s.due_at <= clock_timestamp()) as due, count(*) as scheduled
  from pgnexus.scheduled_requests s
), overdue as (
  select count(*) as requests from pgnexus.job_results j
  where j.deadline <= clock_timestamp() and j.status in ('scheduled', 'enqueued')
), schedules as (
  select count(*) filter (where s.next_fire_at <= clock_timestamp()) as due, count(*) as waiting
  from pgflow.schedules s where s.paused_at is null
), busy as (
  select format('%%s messages on %%s', q.ready, q.queue) as what, q.ready as many from queues q
  union all select format('%%s tasks running', t.running), t.running from tasks t
  union all select format('%%s tasks due', t.due), t.due from tasks t
  union all select format('%%s requests due', r.due), r.due from requests r
  union all select format('%%s requests overdue', o.requests), o.requests from overdue o
  union all select format('%%s schedules due', s.due), s.due from schedules s
)
select (select string_agg(b.what, ', ' order by b.what) from busy b where b.many > 0) as busy,
       t.later + (select coalesce(sum(q.hidden), 0) from queues q) as delayed, t.signals, t.llm, r.scheduled as requests,
       s.waiting as schedules, (select coalesce(sum(q.paused), 0) from queues q) as paused
from tasks t, requests r, schedules s
