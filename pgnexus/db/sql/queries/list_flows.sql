-- A row a flow, all its versions together; flows built at run time are together by what their description calls them.
-- `state` counts are of all runs that are stored, tasks are those of runs under way.
with known as (
  select f.flow_slug, f.version, f.paused_at, f.created_at, coalesce(f.queue_name = 'pgflow_built', false) as built,
         case when f.queue_name = 'pgflow_built' then coalesce(f.definition ->> 'name', f.flow_slug)
              else coalesce(f.name, f.flow_slug) end as name
  from pgflow.flows f
  where f.flow_slug <> 'llm_request_workflow'
),
newest as (
  select distinct on (k.name, k.built) k.name, k.built, k.flow_slug
  from known k order by k.name, k.built, k.version desc, k.created_at desc
),
runs as (
  select r.flow_slug, max(r.started_at) as last_run,
         count(*) filter (where r.status = 'started') as started,
         count(*) filter (where r.status = 'completed') as completed,
         count(*) filter (where r.status = 'failed' and r.cancelled_at is null) as failed,
         count(*) filter (where r.cancelled_at is not null) as cancelled
  from pgflow.runs r where r.flow_slug <> 'llm_request_workflow' group by 1
),
tasks as (
  select t.flow_slug,
         count(*) filter (where t.status = 'queued') as queued,
         count(*) filter (where t.status = 'started' and t.deferred_until is null) as running,
         count(*) filter (where t.deferred_until is not null) as waiting
  from pgflow.runs r join pgflow.step_tasks t on t.run_id = r.run_id
  where r.status = 'started' and r.flow_slug <> 'llm_request_workflow' group by 1
)
select n.name, n.built, n.flow_slug as newest, count(*)::int as versions, bool_and(k.paused_at is not null) as paused,
       (select count(*)::int from pgflow.steps s where s.flow_slug = n.flow_slug) as steps,
       coalesce(sum(r.started), 0)::int as started, coalesce(sum(r.completed), 0)::int as completed,
       coalesce(sum(r.failed), 0)::int as failed, coalesce(sum(r.cancelled), 0)::int as cancelled,
       coalesce(sum(t.queued), 0)::int as queued, coalesce(sum(t.running), 0)::int as running,
       coalesce(sum(t.waiting), 0)::int as waiting, max(r.last_run) as last_run
from newest n
join known k on k.name = n.name and k.built = n.built
left join runs r on r.flow_slug = k.flow_slug
left join tasks t on t.flow_slug = k.flow_slug
group by n.name, n.built, n.flow_slug
order by n.name, n.built
