-- Limits and budgets: what all workers together may use, and which part of it each of them holds.
--
-- A worker takes blocks ahead of its calls (nexus.lease), so that no call costs a statement. Rates are token buckets.
-- Of calls at once, and of budgets, each worker has a row of its own; who takes more waits for one lock for each scope
-- and kind, who pays (nexus.charge) for none.

create table nexus.buckets (
  scope       text not null,
  kind        text not null,
  level       numeric not null,      -- below zero after a call that needed more than there was
  refilled_at timestamptz not null,
  primary key (scope, kind)
) with (fillfactor = 50);

create table nexus.holdings (
  scope         text not null,
  kind          text not null,
  period        date not null,       -- first day of the day or month, UTC; -infinity for calls at once
  instance_id   uuid not null,
  leased        numeric not null default 0,  -- taken, less what was given back; what was settled since is in nexus.charged
  idle          numeric not null default 0,  -- of that, what was set aside for no call when it last told
  waiting       numeric not null default 0,  -- what it lacked then
  waiting_since timestamptz not null default clock_timestamp(),
  told_at       timestamptz not null default clock_timestamp(),
  since         timestamptz not null default clock_timestamp(),  -- tells this row from one that was dropped before
  serial        bigint not null default 0,   -- the last lease, and what it granted
  granted       numeric not null default 0,
  primary key (scope, kind, period, instance_id)
) with (fillfactor = 50);

create table nexus.charged (
  scope       text not null,
  kind        text not null,
  period      date not null,
  instance_id uuid not null,         -- the nil uuid: of instances that are no more
  settled     numeric not null default 0,    -- what had been set aside for the calls that are booked
  spent       numeric not null default 0,    -- what they took
  primary key (scope, kind, period, instance_id)
) with (fillfactor = 50);

-- What the settings of each instance say, for those who look.
create table nexus.configured_limits (
  instance_id uuid not null,
  scope       text not null,
  kind        text not null,
  amount      numeric not null,
  primary key (instance_id, scope, kind)
);

-- The instances that count: others have no calls under way.
create function nexus.live_instances() returns setof uuid
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select w.worker_id from pgflow.workers w
  where w.queue_name = 'llm_request_workflow' and w.stopped_at is null
    and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, interval '1 minute')
$$;

-- Give back and take, for one instance and any number of scopes. Each of p_wants is
--   {scope, kind, family, amount, give, period, since, lost, idle, need, waiting, want}: the amount of the settings; what is
--   given back of the row that began at since; the serial of an earlier lease of which no answer came; what it has left in no call;
--   what its first call lacks; what all its calls lack; the same and what it would have ahead.
-- One row for each, by its number; none at all for an instance that counts for dead.
create function nexus.lease(p_instance uuid, p_serial bigint, p_wants jsonb)
returns table (n bigint, granted numeric, cap numeric, next_in double precision, period date, since timestamptz,
               ends_in double precision, spent numeric, most numeric, rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
#variable_conflict use_column
declare
  v_live uuid[] := array(select nexus.live_instances());
  v_want record;
begin
  if p_instance <> all (v_live) then
    return;
  end if;
  if not exists (
    select from jsonb_array_elements(p_wants) w
    where w ->> 'family' = 'budget'
      or w ->> 'family' = 'slots' and (w ->> 'lost' is not null or (w ->> 'give')::numeric <> 0)
  ) then  -- a crash of the server loses a moment of rates at most, but nothing that was given back for good
    perform set_config('synchronous_commit', 'off', true);
  end if;
  for v_want in  -- in one order for everybody, so that nobody waits in a circle
    select e.n, hashtextextended((e.item ->> 'scope') || ' ' || (e.item ->> 'kind'), 0) as lock, e.item ->> 'family' as family, e.item
    from jsonb_array_elements(p_wants) with ordinality as e (item, n) order by 2, 1
  loop
    if v_want.family = 'rate' then
      return query select v_want.n, r.granted, null::numeric, r.next_in, null::date, null::timestamptz,
                          null::double precision, null::numeric, null::numeric, r.rest
                   from nexus.lease_rate(v_want.item, cardinality(v_live)) r;
    else
      perform pg_advisory_xact_lock(v_want.lock);
      return query select v_want.n, r.*
                   from nexus.lease_share(v_want.item, p_instance, p_serial, v_live) r;
    end if;
  end loop;
end
$$;

-- How much of the rest a worker that wants something may take ahead of its calls: what it asks for, or a sixteenth of its part
-- where there is plenty, and never more than half of its part, so that nobody hoards what is scarce.
create function nexus.ahead(p_want jsonb, p_rest numeric, p_live int) returns numeric
language sql immutable set search_path = pg_catalog, nexus, pg_temp as $$
  select case when p_rest <= 0 or (p_want ->> 'want')::numeric = 0 then 0
              else least(greatest((p_want ->> 'want')::numeric - (p_want ->> 'waiting')::numeric, p_rest / (16 * p_live)),
                         p_rest / (2 * p_live)) end
$$;

-- A token bucket: it holds a tenth of the minute's amount, one at least, and fills all the time. A call that needs more
-- tokens than there are passes as soon as there are any: the rest is owed, so that no flood of small calls keeps it out.
create function nexus.lease_rate(
  p_want jsonb, p_live int, out granted numeric, out next_in double precision, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_scope text := p_want ->> 'scope';
  v_kind text := p_want ->> 'kind';
  v_capacity numeric := greatest((p_want ->> 'amount')::numeric / 10, 1);
  v_per_second numeric := (p_want ->> 'amount')::numeric / 60;
  v_whole boolean := v_kind = 'requests_per_minute';
  v_need numeric := (p_want ->> 'need')::numeric;
  v_waiting numeric := (p_want ->> 'waiting')::numeric;
  v_level numeric;
  v_refilled_at timestamptz;
  v_now timestamptz;
begin
  loop
    select b.level, b.refilled_at into v_level, v_refilled_at
    from nexus.buckets b where b.scope = v_scope and b.kind = v_kind for update;
    exit when found;
    insert into nexus.buckets (scope, kind, level, refilled_at) values (v_scope, v_kind, v_capacity, clock_timestamp())
    on conflict do nothing;
  end loop;
  v_now := clock_timestamp();
  v_level := least(v_capacity, v_level + greatest(extract(epoch from v_now - v_refilled_at), 0)::numeric * v_per_second
                               + (p_want ->> 'give')::numeric);
  granted := 0;
  if v_level >= v_need or (v_level > 0 and not v_whole) then
    granted := v_need + greatest(least(v_waiting, v_level) - v_need, 0);
    granted := granted + nexus.ahead(p_want, v_level - granted, p_live);
    if v_whole then
      granted := floor(granted);
    end if;
  end if;
  v_level := v_level - granted;
  rest := v_level;
  next_in := case when granted >= v_waiting then 0
                  else greatest(0.02 * p_live, (v_whole::int - v_level) / v_per_second) end;
  update nexus.buckets b set level = round(v_level, 6), refilled_at = v_now where b.scope = v_scope and b.kind = v_kind;
end
$$;

-- The period that an amount of this kind is counted in.
create function nexus.period_of(p_kind text, p_now timestamptz) returns date
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select case when p_kind like '%\_per\_day' then (p_now at time zone 'UTC')::date
              when p_kind like '%\_per\_month' then date_trunc('month', p_now at time zone 'UTC')::date
              else '-infinity'::date end
$$;

-- Give back what is no longer wanted. When no answer came to an earlier lease (lost), what it granted is undone if it was
-- done, else what it gave back is given back now; both leave its serial, so that this may be said twice.
create function nexus.give_back(p_want jsonb, p_instance uuid, p_serial bigint) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  update nexus.holdings h
  set leased = greatest(h.leased - case when h.serial = (p_want ->> 'lost')::bigint then h.granted
                                        else (p_want ->> 'give')::numeric end, 0),
      granted = 0, serial = coalesce((p_want ->> 'lost')::bigint, p_serial)
  where h.scope = p_want ->> 'scope' and h.kind = p_want ->> 'kind' and h.instance_id = p_instance
    and h.period = coalesce((p_want ->> 'period')::date, nexus.period_of(p_want ->> 'kind', clock_timestamp()))
    and ((p_want ->> 'since') is null or h.since = (p_want ->> 'since')::timestamptz)
$$;

-- One instance's share of calls at once, or of a budget. The caller has the lock of the scope and kind.
create function nexus.lease_share(
  p_want jsonb, p_instance uuid, p_serial bigint, p_live uuid[],
  out granted numeric, out cap numeric, out next_in double precision, out period date, out since timestamptz,
  out ends_in double precision, out spent numeric, out most numeric, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
#variable_conflict use_column
declare
  v_scope text := p_want ->> 'scope';
  v_kind text := p_want ->> 'kind';
  v_waiting numeric := (p_want ->> 'waiting')::numeric;
  v_now timestamptz := clock_timestamp();
  v_period date := nexus.period_of(v_kind, v_now);
  v_since timestamptz;
  v_waiting_since timestamptz;
begin
  perform nexus.give_back(p_want, p_instance, p_serial);
  insert into nexus.holdings as h (scope, kind, period, instance_id, idle, waiting)
  values (v_scope, v_kind, v_period, p_instance, (p_want ->> 'idle')::numeric, v_waiting)
  on conflict on constraint holdings_pkey do update
  set idle = excluded.idle, waiting = excluded.waiting, told_at = v_now,
      waiting_since = case when h.waiting > 0 and h.told_at > v_now - interval '3 s' then h.waiting_since else v_now end
  returning h.since, h.waiting_since into v_since, v_waiting_since;
  if p_want ->> 'family' = 'slots' then
    select s.granted, s.cap, s.next_in, s.rest into granted, cap, next_in, rest
    from nexus.share_slots(p_want, p_instance, p_live, v_waiting_since) s;
  else
    select s.granted, s.next_in, s.spent, s.most, s.rest into granted, next_in, spent, most, rest
    from nexus.share_budget(p_want, p_instance, v_period, cardinality(p_live)) s;
    ends_in := extract(epoch from (v_period + case when v_kind like '%\_per\_day' then interval '1 day' else interval '1 month' end)
                                  - v_now at time zone 'UTC');
  end if;
  if granted > 0 then
    update nexus.holdings h
    set leased = h.leased + lease_share.granted, serial = p_serial, granted = lease_share.granted, idle = h.idle + greatest(lease_share.granted - v_waiting, 0),
        waiting = greatest(h.waiting - lease_share.granted, 0), waiting_since = v_now
    where h.scope = v_scope and h.kind = v_kind and h.period = v_period and h.instance_id = p_instance;
  end if;
  period := v_period;
  since := v_since;
end
$$;

-- Calls at once. Where several wait, each may have its fair part; where there are fewer calls than workers that wait, who
-- waits longest is next. cap says how many a worker should hold on to, because others wait.
create function nexus.share_slots(
  p_want jsonb, p_instance uuid, p_live uuid[], p_waiting_since timestamptz,
  out granted numeric, out cap numeric, out next_in double precision, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_amount numeric := (p_want ->> 'amount')::numeric;
  v_waiting numeric := (p_want ->> 'waiting')::numeric;
  v_fair numeric;
  v_room numeric;
  v_short bigint;
begin
  with shares as (
    select h.instance_id, h.leased, h.waiting_since,
           case when h.told_at > clock_timestamp() - interval '3 s' then h.waiting else 0 end as waiting
    from nexus.holdings h
    where h.scope = p_want ->> 'scope' and h.kind = p_want ->> 'kind' and h.instance_id = any (p_live)
  ), fair as (
    select floor(v_amount / (count(*) filter (where s.waiting > 0 and s.instance_id <> p_instance) + 1)) as part from shares s
  )
  select f.part,
         v_amount - sum(s.leased) - coalesce(sum(
           case when f.part >= 1 then greatest(least(s.waiting, f.part - s.leased), 0)
                when s.waiting_since < p_waiting_since then 1 else 0 end)
           filter (where s.waiting > 0 and s.instance_id <> p_instance), 0),
         count(*) filter (where s.waiting > 0 and s.instance_id <> p_instance and s.leased < greatest(f.part, 1))
  into v_fair, v_room, v_short
  from shares s cross join fair f group by f.part;
  granted := least(v_waiting, greatest(v_room, 0));
  granted := floor(granted + nexus.ahead(p_want, v_room - granted, cardinality(p_live)));
  rest := v_room - granted;
  cap := case when v_short > 0 then v_fair end;
  next_in := case when granted >= v_waiting then 0 else least(greatest(0.02 * cardinality(p_live), 0.1), 1) end;
end
$$;

-- A budget. Room is what is neither spent nor held by anybody; most is the same with all that lies idle in the blocks of
-- others, which is what one can wait for; both after the grant.
create function nexus.share_budget(
  p_want jsonb, p_instance uuid, p_period date, p_live int,
  out granted numeric, out next_in double precision, out spent numeric, out most numeric, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_need numeric := (p_want ->> 'need')::numeric;
  v_waiting numeric := (p_want ->> 'waiting')::numeric;
  v_held numeric;
  v_room numeric;
  v_idle numeric;
begin
  with held as (
    select h.instance_id, h.idle, greatest(h.leased - coalesce(c.settled, 0), 0) as amount
    from nexus.holdings h left join nexus.charged c using (scope, kind, period, instance_id)
    where h.scope = p_want ->> 'scope' and h.kind = p_want ->> 'kind' and h.period = p_period
  )
  select coalesce(sum(h.amount), 0), coalesce(sum(least(h.idle, h.amount)) filter (where h.instance_id <> p_instance), 0),
         (select coalesce(sum(c.spent), 0) from nexus.charged c
          where c.scope = p_want ->> 'scope' and c.kind = p_want ->> 'kind' and c.period = p_period)
  into v_held, v_idle, spent
  from held h;
  v_room := (p_want ->> 'amount')::numeric - spent - v_held;
  granted := 0;
  if v_room >= v_need then
    granted := v_need + greatest(least(v_waiting, v_room) - v_need, 0);
    granted := granted + nexus.ahead(p_want, v_room - granted, p_live);
    granted := greatest(trunc(granted, 12), v_need);
  end if;
  most := v_room + v_idle - granted;
  rest := v_room - granted;
  next_in := case when granted >= v_waiting then 0 else 0.25 end;
end
$$;

-- What is kept under the nil uuid has several writers: one at a time, since each comes with rows in no order.
create function nexus.lock_past() returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select pg_advisory_xact_lock(hashtextextended('nexus.charged', 0))
$$;

-- Pay for calls, in the transaction that books them. Each of p_charges is {scope, kind, period, reserved, actual}; what was
-- set aside counts where nobody knows what a call took.
create function nexus.charge(p_instance uuid, p_charges jsonb[]) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.lock_past() where p_instance = '00000000-0000-0000-0000-000000000000';
  insert into nexus.charged as c (scope, kind, period, instance_id, settled, spent)
  select i.scope, i.kind, i.period, p_instance, sum(i.reserved), sum(coalesce(i.actual, i.reserved))
  from unnest(p_charges) as e (item)
  cross join lateral jsonb_to_record(e.item) as i (scope text, kind text, period date, reserved numeric, actual numeric)
  group by i.scope, i.kind, i.period
  order by i.scope, i.kind, i.period  -- so that two of one instance do not wait in a circle
  on conflict on constraint charged_pkey do update
  set settled = c.settled + excluded.settled, spent = c.spent + excluded.spent
$$;

-- An instance is no more: what it spent is kept under the nil uuid, what it held is free.
create function nexus.release_holdings(p_instance uuid) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform nexus.lock_past();
  with gone as (
    delete from nexus.charged c where c.instance_id = p_instance returning c.scope, c.kind, c.period, c.spent
  )
  insert into nexus.charged as c (scope, kind, period, instance_id, spent)
  select g.scope, g.kind, g.period, '00000000-0000-0000-0000-000000000000', g.spent
  from gone g where g.spent <> 0 order by 1, 2, 3
  on conflict on constraint charged_pkey do update set spent = c.spent + excluded.spent;
  delete from nexus.holdings h where h.instance_id = p_instance;
  delete from nexus.configured_limits l where l.instance_id = p_instance;
  perform nexus.prune_limits();
end
$$;

-- What nobody looks at any more: months that are over, what was given back long ago, buckets that are full.
create function nexus.prune_limits() returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  delete from nexus.charged c where c.period < clock_timestamp() - interval '100 days';
  delete from nexus.holdings h
  where h.told_at < clock_timestamp() - interval '1 hour'
    and (h.leased = 0 or (isfinite(h.period) and h.period < clock_timestamp() - interval '100 days'))
    and not exists (select from nexus.charged c
                    where c.scope = h.scope and c.kind = h.kind and c.period = h.period and c.instance_id = h.instance_id);
  delete from nexus.buckets b where b.refilled_at < clock_timestamp() - interval '1 day'  -- a new one is full, too
$$;

-- Tell what the settings of this instance say: {scope, kind, amount} each.
create function nexus.configure_limits(p_instance uuid, p_limits jsonb) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  insert into nexus.configured_limits (instance_id, scope, kind, amount)
  select p_instance, l.scope, l.kind, l.amount
  from jsonb_to_recordset(p_limits) as l (scope text, kind text, amount numeric)
  on conflict on constraint configured_limits_pkey do update set amount = excluded.amount
$$;
