-- Circuit breakers: which model at which provider is left alone, and until when. A row is an open breaker; once its
-- time is over one worker at a time may probe, and what that call comes to closes it or opens it for longer.

create table nexus.breakers (
  provider    text not null,
  model       text not null,
  reason      text not null,
  opened_at   timestamptz not null default clock_timestamp(),
  open_until  timestamptz not null,
  times       int not null default 1,
  probe_until timestamptz,
  probe_by    uuid,  -- the instance that has the right to probe until then
  primary key (provider, model),
  constraint reason_is_known check (reason in ('failures', 'rate_limited'))
);

-- Leave a model alone for p_seconds: after failures doubled each time it comes to nothing, 300 at most; after a vendor's own
-- Retry-After just as long as it said, and that begins the count anew. What nobody has asked for in a day is forgotten.
create function nexus.open_breaker(p_provider text, p_model text, p_reason text, p_seconds double precision) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  delete from nexus.breakers b where b.open_until < clock_timestamp() - interval '1 day';
  insert into nexus.breakers as b (provider, model, reason, open_until, times)
  values (p_provider, p_model, p_reason, clock_timestamp() + make_interval(secs => p_seconds), (p_reason = 'failures')::int)
  on conflict (provider, model) do update set
    reason = excluded.reason,
    times = case when b.reason = excluded.reason then b.times else 0 end + excluded.times,
    open_until = greatest(b.open_until, case when excluded.reason = 'failures' and b.reason = 'failures'
      then clock_timestamp() + make_interval(secs => least(300, p_seconds * 2.0 ^ least(b.times, 16)))
      else excluded.open_until end),
    probe_until = null, probe_by = null
    -- several workers see the same outage: the first of them counts
    where b.open_until <= clock_timestamp() or excluded.reason = 'rate_limited' and excluded.open_until > b.open_until;
  if found then
    perform pg_notify('pgnexus_breakers', '');
  end if;
end
$$;

-- The right to make the one call that finds out; held for p_seconds at most, and no longer than its instance lives. Who asks
-- again knows of no such call of its own: the answer to the first time was lost.
create function nexus.probe_breaker(p_instance uuid, p_provider text, p_model text, p_seconds double precision) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  update nexus.breakers b set probe_until = clock_timestamp() + make_interval(secs => p_seconds), probe_by = p_instance
  where b.provider = p_provider and b.model = p_model and b.open_until <= clock_timestamp()
    and (coalesce(b.probe_until, '-infinity') <= clock_timestamp() or b.probe_by = p_instance
         or b.probe_by not in (select nexus.live_instances()));
  return found or not exists (
    select from nexus.breakers b where b.provider = p_provider and b.model = p_model);
end
$$;

-- The call came to nothing that would tell: another one may probe.
create function nexus.leave_probe(p_instance uuid, p_provider text, p_model text) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  update nexus.breakers b set probe_until = null, probe_by = null
  where b.provider = p_provider and b.model = p_model and b.probe_by = p_instance
$$;

create function nexus.close_breaker(p_provider text, p_model text) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  delete from nexus.breakers b where b.provider = p_provider and b.model = p_model;
  if found then
    perform pg_notify('pgnexus_breakers', '');
  end if;
end
$$;
