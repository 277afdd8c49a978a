select a.provider, a.model, count(*) as calls,
       percentile_cont(0.5) within group (order by a.duration_ms) filter (where a.outcome = 'success') as latency_ms,
       (count(*) filter (where a.outcome = 'success'))::double precision
         / nullif(count(*) filter (where a.outcome <> all (%(not_the_vendors)s::text[])), 0) as success_rate
from nexus.attempts a
where a.started_at > clock_timestamp() - make_interval(secs => %(seconds)s::double precision)
group by a.provider, a.model
