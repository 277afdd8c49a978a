-- What one can see while it happens: for `pgnexus top`, every second, and for the metrics of `pgnexus up`. Nothing here
-- reads a whole table: what may be long is counted up to 10,000, the books are read by their index of time.

-- How much lies on every queue. Past 10,000 messages the depth is the range of their numbers, which is what it is on a queue
-- that is emptied from its front, and ready what it was counted to.
create function nexus_api.watch_queues()
returns table (queue text, depth bigint, ready bigint, oldest_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
declare
  v_queue text;
begin
  for v_queue in select m.queue_name from pgmq.meta m order by m.queue_name limit 200 loop
    return query execute format(
      'select %L::text,
              case when c.depth <= 10000 then c.depth
                   else greatest(c.depth, (select max(q.msg_id) - min(q.msg_id) + 1 from pgmq.%I q)) end,
              (select count(*) from (select from pgmq.%2$I q where q.vt <= $1 limit 10000) r),
              (select extract(epoch from $1 - q.enqueued_at)::double precision from pgmq.%2$I q order by q.msg_id limit 1)
       from (select count(*) as depth from (select from pgmq.%2$I q limit 10001) l) c',
      v_queue, pgmq.format_table_name(v_queue, 'q')) using clock_timestamp();
  end loop;
end
$$;

-- What waits in line for which limit. All single flights are one line, `flight`, and past thirty agents the others are `agent`.
create function nexus_api.watch_parked() returns table (scope text, requests bigint, oldest_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
declare
  v_now constant timestamptz := clock_timestamp();
  v_after text collate "C" := '';
  v_scope text collate "C";
  v_last text collate "C";
  v_agents int := 0;
begin
  for n in 1 .. 200 loop
    select p.scope into v_scope from nexus.parked p where p.scope > v_after order by p.scope limit 1;
    exit when v_scope is null;
    v_agents := v_agents + case when v_scope like 'agent:%' then 1 else 0 end;
    v_last := case when v_scope like 'flight:%' then 'flight:' || chr(1114111)
                   when v_scope like 'agent:%' and v_agents > 30 then 'agent:' || chr(1114111)
                   else v_scope end;
    return query
      select case when v_last = v_scope then v_scope else split_part(v_scope, ':', 1) end::text, count(*),
             extract(epoch from v_now - min(f.since))::double precision
      from (select p.since from nexus.parked p where p.scope >= v_scope and p.scope <= v_last limit 10000) f;
    v_after := v_last;
  end loop;
end
$$;

-- The provider calls under way, by model: those that are noted as such and are not in the books yet, 5,000 at most.
create function nexus_api.watch_calls_in_flight() returns table (provider text, model text, calls bigint)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
begin
  return query
    select n.call ->> 4, n.call ->> 5, count(*)
    from (
      select r.instance_id, c.call
      from nexus.reservations r cross join lateral json_array_elements(r.calls) as c (call)
      limit 5000
    ) n
    where not exists (
      select from nexus.attempts a
      where a.request_id = (n.call ->> 0)::uuid and a.attempt = (n.call ->> 1)::int and a.call = (n.call ->> 2)::int
        and a.instance_id = n.instance_id)
    group by 1, 2 order by 3 desc, 1, 2 limit 200;
end
$$;

-- The provider calls that ended in the last p_window, by model: how many, how many failed how, tokens, cost, latency.
-- The first row, of no provider, is all of them together. Of calls that took more than five minutes it may know nothing.
create function nexus_api.watch_calls(p_window interval)
returns table (provider text, model text, calls bigint, failures jsonb, tokens bigint, cost numeric, p50_ms double precision,
               p95_ms double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
#variable_conflict use_column
declare
  -- no volatile function: the index of time would not be used
  v_since constant timestamptz := clock_timestamp() - p_window;
  v_started constant timestamptz := v_since - case when p_window > interval '0' then interval '5 minutes' else '0' end;
begin
  return query
    with ended as materialized (
      select a.provider, a.model, a.outcome, a.duration_ms, a.prompt_tokens + a.completion_tokens as tokens, a.cost
      from nexus.attempts a
      where a.started_at > v_started
        and (a.started_at > v_since or a.started_at + a.duration_ms * interval '1 millisecond' > v_since)
    ), failed as (
      select f.provider, f.model, f.outcome, count(*) as calls from ended f where f.outcome <> 'success' group by 1, 2, 3
    ), summed as (
      select e.provider, e.model, count(*) as calls, coalesce(sum(e.tokens), 0)::bigint as tokens, sum(e.cost) as cost,
             percentile_disc('{0.5,0.95}'::double precision[]) within group (order by e.duration_ms) as latencies
      from ended e group by grouping sets ((), (e.provider, e.model))
    )
    select e.provider, e.model, e.calls,
           (select coalesce(jsonb_object_agg(o.outcome, o.calls), '{}')
            from (select f.outcome, sum(f.calls) as calls from failed f
                  where e.provider is null or f.provider = e.provider and f.model = e.model group by 1) o),
           e.tokens, e.cost, e.latencies[1]::double precision, e.latencies[2]::double precision
    from summed e
    order by e.provider nulls first, e.calls desc
    limit 200;
end
$$;

-- The fifty limits and budgets that are used most. used is from 0 to 1 and more: what is spent and set aside of them, of a rate
-- what its bucket lacks.
create function nexus_api.watch_limits()
returns table (scope text, kind text, "limit" numeric, spent numeric, held numeric, used double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
#variable_conflict use_column
begin
  return query
    select l.scope, l.kind, l.limit, l.spent, l.held, u.used
    from nexus_api.limits() l
    cross join lateral (select (case
      when l.level is not null then 1 - l.level / greatest(l.limit / 10, 1)
      when l.limit = 0 then 1
      else (coalesce(l.spent, 0) + coalesce(l.held, 0)) / l.limit end)::double precision as used) u
    where l.limit is not null
    order by u.used desc, l.scope, l.kind limit 50;
end
$$;

-- What calls that began since then have cost, in US dollars, their tokens, and how many used tokens at a price that is not known.
create function nexus_api.spent(p_since timestamptz) returns table (cost numeric, tokens bigint, unpriced bigint)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select coalesce(sum(a.cost), 0), coalesce(sum(a.prompt_tokens + a.completion_tokens), 0)::bigint,
         count(*) filter (where a.cost is null and a.prompt_tokens + a.completion_tokens > 0)
  from nexus.attempts a where a.started_at >= p_since
$$;

-- All that is to be seen now. p_lease is for instances that told no lease.
create function nexus_api.watch(p_lease interval, p_window interval) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
begin
  return jsonb_build_object(
    'at', clock_timestamp(),
    'window', extract(epoch from p_window),
    'queues', (select coalesce(jsonb_agg(to_jsonb(q)), '[]') from nexus_api.watch_queues() q),
    'parked', (select coalesce(jsonb_agg(to_jsonb(p)), '[]') from nexus_api.watch_parked() p),
    'calls', (select coalesce(jsonb_agg(to_jsonb(c)), '[]') from nexus_api.watch_calls(p_window) c),
    'calls_in_flight', (select coalesce(jsonb_agg(to_jsonb(f)), '[]') from nexus_api.watch_calls_in_flight() f),
    'breakers', (select coalesce(jsonb_agg(to_jsonb(b)), '[]') from nexus_api.breakers() b),
    'limits', (select coalesce(jsonb_agg(to_jsonb(l)), '[]') from nexus_api.watch_limits() l),
    'in_flight', (select count(*) from pgflow.step_tasks t
                  where t.status = 'started' and t.flow_slug = 'llm_request_workflow'),
    'waiting_for_retry', (select count(*) from (
      select from pgflow.step_tasks t where t.not_before < 'infinity' and t.flow_slug = 'llm_request_workflow' limit 10000) w),
    'instances', nexus_api.live_instances(p_lease));
end
$$;
