-- The books: every provider call is a row of nexus.attempts, and a result tells the sum of its request's rows.

-- track_metrics, in T3: every provider call into the books, also of requests that others have ended meanwhile, and what it
-- is charged to budgets. A call that was taken for lost (`unknown`) gets its real row, and the difference is charged.
create function nexus.book(p_worker_id uuid, p_items jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_gone jsonb[] := '{}';
  v_charges jsonb[];
  v_corrections jsonb[];
  v_left int;
begin
  if exists (select from unnest(p_items) as i (item) where (i.item ->> 'attempt')::int > 1) then
    -- who had them before may be dead: the results shall tell of those calls, too
    v_gone := nexus.begin_burial(true);
  end if;
  with given as materialized (
    select (i.item ->> 'run_id')::uuid as request_id, (i.item ->> 'attempt')::int as attempt, i.item, c.*
    from unnest(p_items) as i (item)
    cross join lateral jsonb_to_recordset(i.item -> 'calls') as c (
      call int, provider text, model text, outcome text, error text, started_at timestamptz, duration_ms int,
      prompt_tokens bigint, completion_tokens bigint, cached_tokens bigint, cost numeric, cache_write_tokens bigint,
      reasoning_tokens bigint, estimated boolean, charges jsonb)
  ), booked as (
    insert into nexus.attempts as a (
      request_id, attempt, call, instance_id, provider, model, complexity, task_type, agent_id, outcome, error, started_at,
      duration_ms, prompt_tokens, completion_tokens, cached_tokens, cost, cache_write_tokens, reasoning_tokens, estimated)
    select g.request_id, g.attempt, g.call, p_worker_id, g.provider, g.model, g.item ->> 'complexity',
           g.item ->> 'task_type', g.item ->> 'agent_id', g.outcome, g.error, g.started_at, g.duration_ms,
           coalesce(g.prompt_tokens, 0), coalesce(g.completion_tokens, 0), coalesce(g.cached_tokens, 0), g.cost,
           coalesce(g.cache_write_tokens, 0), coalesce(g.reasoning_tokens, 0), coalesce(g.estimated, false)
    from given g
    order by g.request_id, g.attempt, g.call
    on conflict on constraint attempts_pkey do update
    set outcome = excluded.outcome, error = excluded.error, started_at = excluded.started_at,
        duration_ms = excluded.duration_ms, prompt_tokens = excluded.prompt_tokens,
        completion_tokens = excluded.completion_tokens, cached_tokens = excluded.cached_tokens, cost = excluded.cost,
        cache_write_tokens = excluded.cache_write_tokens, reasoning_tokens = excluded.reasoning_tokens,
        estimated = excluded.estimated
    where a.outcome = 'unknown'
    returning a.request_id, a.attempt, a.call, xmax <> 0 as replaces
  ), charged as (
    select b.replaces, e.item, (e.item ->> 'reserved')::numeric as reserved
    from given g
    join booked b on b.request_id = g.request_id and b.attempt = g.attempt and b.call = g.call
    cross join lateral jsonb_array_elements(g.charges) as e (item)
    where g.charges is not null
  )
  select array_agg(c.item) filter (where not c.replaces),
         array_agg(c.item || jsonb_build_object(
           'reserved', 0, 'actual', coalesce((c.item ->> 'actual')::numeric, c.reserved) - c.reserved)) filter (where c.replaces),
         (select count(*) from given) - (select count(*) from booked)
  into v_charges, v_corrections, v_left
  from charged c;
  if v_left > 0 then
    perform nexus.book(p_worker_id, r.items) from nexus.renumbered(p_worker_id, p_items) as r (items) where r.items is not null;
  end if;
  if v_charges is not null then
    perform nexus.charge(p_worker_id, v_charges);
  end if;
  if v_corrections is not null then  -- what was reserved is booked with those who are no more
    perform nexus.charge('00000000-0000-0000-0000-000000000000', v_corrections);
  end if;
  perform nexus.end_burial(v_gone);
end
$$;

-- Of these items, the calls that are not in the books because other calls have their numbers: a request that was given back
-- without counting the attempt, and came to the same worker again. They get the next numbers; null when there are none.
create function nexus.renumbered(p_worker_id uuid, p_items jsonb[]) returns jsonb[]
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select array_agg(n.item || jsonb_build_object('calls', n.calls))
  from (
    select i.item, jsonb_agg(c.call || jsonb_build_object('call', b.calls + c.n) order by c.n) as calls
    from unnest(p_items) as i (item)
    cross join lateral (
      select max(a.call) as calls, array_agg(a.started_at) as began from nexus.attempts a
      where a.request_id = (i.item ->> 'run_id')::uuid and a.attempt = (i.item ->> 'attempt')::int and a.instance_id = p_worker_id) b
    cross join lateral jsonb_array_elements(i.item -> 'calls') with ordinality as c (call, n)
    where (c.call ->> 'started_at')::timestamptz <> all (b.began)
    group by i.item) n
$$;

-- The sum of a request's calls, as a result tells it: cost is null when a call that used tokens has no known price.
create function nexus.sum_of_calls(
  p_request_id uuid, out calls int, out prompt_tokens bigint, out completion_tokens bigint, out cached_tokens bigint,
  out cache_write_tokens bigint, out reasoning_tokens bigint, out cost numeric, out estimated boolean)
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select count(*), coalesce(sum(a.prompt_tokens), 0), coalesce(sum(a.completion_tokens), 0),
         coalesce(sum(a.cached_tokens), 0), coalesce(sum(a.cache_write_tokens), 0), coalesce(sum(a.reasoning_tokens), 0),
         case when not coalesce(bool_or(a.cost is null and a.prompt_tokens + a.completion_tokens > 0), false) then sum(a.cost) end,
         coalesce(bool_or(a.estimated), false)
  from nexus.attempts a where a.request_id = p_request_id
$$;

-- Of these items, the requests that have more calls in the books than the item tells of: they were taken up before.
create function nexus.called_before(p_items jsonb[]) returns uuid[]
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select array_agg(i.run_id)
  from (select (i.item ->> 'run_id')::uuid as run_id, jsonb_array_length(i.item -> 'calls') as calls
        from unnest(p_items) as i (item)) i
  where (select count(*) from nexus.attempts a where a.request_id = i.run_id) > i.calls
$$;

-- A result with the calls of all the times its request was taken up, where there are more than it tells of.
create function nexus.count_calls(p_message jsonb, p_run_id uuid) returns jsonb
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select case when s.calls <= coalesce((p_message ->> 'attempts')::int, 0) and p_message ? 'usage' then p_message
              when s.calls = 0 then p_message
              else p_message - '{cost,estimated}'::text[] || jsonb_strip_nulls(jsonb_build_object(
                'attempts', s.calls,
                -- an answer that another request got is free, whatever was asked in vain before it
                'cost', coalesce(s.cost::text, case when s.prompt_tokens + s.completion_tokens = 0 then p_message ->> 'cost' end),
                'estimated', case when s.estimated then true end,
                'usage', jsonb_build_object(
                  'prompt_tokens', s.prompt_tokens, 'completion_tokens', s.completion_tokens,
                  'total_tokens', s.prompt_tokens + s.completion_tokens, 'cached_tokens', s.cached_tokens,
                  'cache_write_tokens', s.cache_write_tokens, 'reasoning_tokens', s.reasoning_tokens))) end
  from nexus.sum_of_calls(p_run_id) s
$$;

-- Calls of items that could not be settled are in the books all the same: whoever ended their requests did not know them.
create function nexus.note_late(p_items jsonb[], p_settled uuid[]) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  insert into nexus.late_calls (request_id)
  select (i.item ->> 'run_id')::uuid from unnest(p_items) as i (item)
  where (i.item ->> 'run_id')::uuid <> all (p_settled) and jsonb_array_length(i.item -> 'calls') > 0
$$;

-- Give the stored results of requests that have ended the sum of all their calls, where calls came late; a request that
-- has not ended will be told with them when it does. What somebody else holds is left for the next time, so that this waits
-- for nobody; what never arrives where results are stored is let go after a day. Returns how many were looked at.
create function nexus.amend_results(p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_late record;
  v_ended boolean;
  v_known boolean;
  v_done tid[] := '{}';
begin
  for v_late in
    select l.request_id, array_agg(l.ctid) as rows, min(l.noted_at) < clock_timestamp() - interval '1 day' as old
    from (select k.request_id, k.noted_at, k.ctid from nexus.late_calls k order by k.noted_at limit p_limit
          for update skip locked) l
    group by 1 order by 1
  loop
    select r.status <> 'started' into v_ended from pgflow.runs r where r.run_id = v_late.request_id for share skip locked;
    v_known := found or not exists (select from pgflow.runs r where r.run_id = v_late.request_id);
    if v_late.old or v_known and (not coalesce(v_ended, true) or nexus_api.amend_result(v_late.request_id)) then
      v_done := v_done || v_late.rows;
    end if;
  end loop;
  delete from nexus.late_calls k where k.ctid = any (v_done);
  return cardinality(v_done);
end
$$;
