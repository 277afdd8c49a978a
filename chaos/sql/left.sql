-- What should be gone when all is over; a note of booked calls may be back after a crash, until its worker ends.
select * from (
  select 'run ' || status as what, count(*) as n from pgflow.runs where status = 'started' group by 1
  union all
  select 'task ' || status, count(*) from pgflow.step_tasks where status in ('queued', 'started') group by 1
  union all select 'parked', count(*) from nexus.parked
  union all select 'flights', count(*) from nexus.flights
  union all select 'reservations', count(*) from nexus.reservations where not %(crashed)s
  union all
  select 'calls in flight', count(*) from nexus.reservations r cross join lateral json_array_elements(r.calls) c
  where not exists (select from nexus.attempts a where a.instance_id = r.instance_id and a.request_id = (c ->> 0)::uuid
                      and a.attempt = (c ->> 1)::int and a.call = (c ->> 2)::int)
  union all select 'late calls', count(*) from nexus.late_calls
  union all select 'scheduled', count(*) from pgnexus.scheduled_requests
  union all select 'queue ' || queue, depth from nexus_api.queue_metrics()
  union all select 'archive ' || queue, archived from nexus_api.queue_metrics() where queue like 'ai\_%%'
  union all select 'held of ' || scope || ' ' || kind, held from nexus_api.limits() where held <> 0
  union all
  select 'holdings of the dead', count(*) from nexus.holdings h
  where not exists (select from nexus.live_instances() l where l = h.instance_id)
) l where n <> 0
