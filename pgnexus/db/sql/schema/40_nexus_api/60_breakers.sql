-- The breakers that are open, or wait for a probe (then open_for is 0), for whoever watches.
create function nexus_api.breakers()
returns table (provider text, model text, reason text, opened_at timestamptz, open_for double precision, times int)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select b.provider, b.model, b.reason, b.opened_at,
         greatest(0, extract(epoch from b.open_until - clock_timestamp()))::double precision, b.times
  from nexus.breakers b
  where b.reason = 'failures' or b.open_until > clock_timestamp()
  order by 1, 2
$$;
