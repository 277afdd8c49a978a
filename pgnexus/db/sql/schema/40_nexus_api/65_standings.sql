-- How the models did in the last seconds, by the books: the median of their answers, and the share of calls that were
-- answered, without those whose outcome says nothing of the vendor; beside them the breakers that are open.
create function nexus_api.standings(p_seconds double precision, p_not_the_vendors text[])
returns table (provider text, model text, calls bigint, latency_ms double precision, success_rate double precision,
               open_for double precision)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  with lately as (
    select a.provider, a.model, count(*) as calls,
           percentile_cont(0.5) within group (order by a.duration_ms) filter (where a.outcome = 'success') as latency_ms,
           (count(*) filter (where a.outcome = 'success'))::double precision
             / nullif(count(*) filter (where a.outcome <> all (p_not_the_vendors)), 0) as success_rate
    from nexus.attempts a
    where a.started_at > (select clock_timestamp() - make_interval(secs => p_seconds))  -- asked once, so that the index is used
    group by a.provider, a.model
  )
  select coalesce(l.provider, b.provider), coalesce(l.model, b.model), coalesce(l.calls, 0), l.latency_ms,
         l.success_rate, nullif(b.open_for, 0)
  from lately l full join nexus_api.breakers() b on b.provider = l.provider and b.model = l.model
$$;
