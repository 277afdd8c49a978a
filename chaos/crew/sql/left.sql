-- What should be gone when all has ended.
select what, n from (
  select 'runs under way' as what, count(*) as n from pgflow.runs where status = 'started'
  union all select 'tasks under way', count(*) from pgflow.step_tasks where status in ('queued', 'started')
  union all select 'requests over a limit', count(*) from nexus.parked
  union all select 'scheduled requests', count(*) from pgnexus.scheduled_requests
  union all select 'messages on ' || queue, depth from nexus_api.queue_metrics()
  union all select 'archived from ' || queue, archived from nexus_api.queue_metrics()
) as l
where n <> 0
