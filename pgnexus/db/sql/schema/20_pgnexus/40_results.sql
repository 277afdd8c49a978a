-- T4: results into job_results. The first terminal state wins; a late answer adds its tokens and cost to the
-- books and nothing else.

create function pgnexus.try_uuid(p_text text) returns uuid
language sql immutable parallel safe as $$
  select case when p_text ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then p_text::uuid end
$$;

-- An amount out of a message that anyone may have written: a number or its text, not negative, else null.
create function pgnexus.try_amount(p_text text) returns numeric
language sql immutable parallel safe as $$
  select case when length(p_text) <= 60 and p_text ~ '^[0-9]+(\.[0-9]+)?$' then p_text::numeric end
$$;

create function pgnexus.try_count(p_text text) returns bigint
language sql immutable parallel safe as $$
  select case when p_text ~ '^[0-9]{1,15}(\.0*)?$' then trunc(p_text::numeric)::bigint end
$$;

-- The same out of JSON: a number, which is the usual form, needs no look at its digits.
create function pgnexus.read_count(p_value jsonb) returns bigint
language sql immutable parallel safe as $$
  select case jsonb_typeof(p_value)
    when 'number' then case when p_value::numeric between 0 and 999999999999999 and p_value::numeric = trunc(p_value::numeric)
                            then p_value::numeric::bigint end
    when 'string' then pgnexus.try_count(p_value #>> '{}') end
$$;

-- A result message as columns of job_results. One row a message, also for a message that is none: then
-- request_id is null.
create function pgnexus.read_results(p_messages jsonb[]) returns table (
  ordinal bigint, request_id uuid, status text, agent_id text, model text, provider text, output jsonb, error jsonb,
  prompt_tokens bigint, completion_tokens bigint, total_tokens bigint, cached_tokens bigint, cost numeric,
  duration_ms bigint, attempts int, message jsonb, reasoning_tokens bigint, cache_write_tokens bigint)
language sql immutable as $$
  select m.ordinal,
         case when m.message ->> 'status' in ('success', 'failed', 'timeout', 'cancelled')
              then pgnexus.try_uuid(m.message ->> 'request_id') end,
         m.message ->> 'status', left(m.message ->> 'agent_id', 200), m.message ->> 'model', m.message ->> 'provider',
         -- what callers read has its type, whoever wrote it; what we do not know is kept
         jsonb_strip_nulls(
           m.message
           - '{request_id,agent_id,status,model,provider,usage,cost,latency_ms,attempts,error,timestamp}'::text[]
           || jsonb_build_object(
             'response', m.message ->> 'response', 'finish_reason', m.message ->> 'finish_reason',
             'message', case when jsonb_typeof(m.message -> 'message') = 'object' then m.message -> 'message' end)),
         case when m.message ->> 'status' <> 'success' then
           case when jsonb_typeof(m.message -> 'error') = 'object' then m.message -> 'error' else '{}' end
           || jsonb_build_object(
             'type', coalesce(m.message #>> '{error,type}', 'unknown'),
             'message', coalesce(m.message #>> '{error,message}', m.message ->> 'error', 'the result named no error'),
             'retryable', coalesce(m.message #> '{error,retryable}' = 'true', false)) end,
         pgnexus.read_count(u.usage -> 'prompt_tokens'),
         pgnexus.read_count(u.usage -> 'completion_tokens'),
         coalesce(pgnexus.read_count(u.usage -> 'total_tokens'),
                  pgnexus.read_count(u.usage -> 'prompt_tokens') + pgnexus.read_count(u.usage -> 'completion_tokens')),
         pgnexus.read_count(u.usage -> 'cached_tokens'),
         pgnexus.try_amount(m.message ->> 'cost'),
         pgnexus.read_count(m.message -> 'latency_ms'),
         least(coalesce(pgnexus.read_count(m.message -> 'attempts'), 0), 2147483647)::int,
         m.message,
         nullif(pgnexus.read_count(u.usage -> 'reasoning_tokens'), 0),
         nullif(pgnexus.read_count(u.usage -> 'cache_write_tokens'), 0)
  from unnest(p_messages) with ordinality as m (message, ordinal)
  cross join lateral (select m.message -> 'usage' as usage) u
$$;

-- Record results, in the order given, each at its terminal state if its request has none yet. Returns the requests that they
-- ended. A result whose request was never stored here is stored all the same.
create function pgnexus.end_requests(p_messages jsonb[], p_notify boolean) returns uuid[]
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_ended uuid[];
begin
  with firsts as (
    select distinct on (r.request_id) r.ordinal, r.request_id, r.status, r.agent_id, r.model, r.provider, r.output, r.error,
           r.prompt_tokens, r.completion_tokens, r.total_tokens, r.cached_tokens, r.cost, r.duration_ms, r.attempts,
           r.reasoning_tokens, r.cache_write_tokens
    from pgnexus.read_results(p_messages) r
    where r.request_id is not null order by r.request_id, r.ordinal
  ), updated as (
    update pgnexus.job_results j
    set status = f.status, output = f.output, error = f.error, model = coalesce(f.model, j.model),
        provider = coalesce(f.provider, j.provider), prompt_tokens = f.prompt_tokens,
        completion_tokens = f.completion_tokens, total_tokens = f.total_tokens, cached_tokens = f.cached_tokens,
        cost = f.cost, duration_ms = f.duration_ms, attempts = f.attempts, finished_at = clock_timestamp(),
        reasoning_tokens = f.reasoning_tokens, cache_write_tokens = f.cache_write_tokens
    from firsts f
    where j.request_id = f.request_id and j.status in ('enqueued', 'scheduled')
    returning j.request_id
  )
  select array_agg(u.request_id) into v_ended from updated u;
  if cardinality(v_ended) is distinct from cardinality(p_messages) then
    v_ended := v_ended || pgnexus.store_strays(p_messages);
    perform pgnexus.book_late_results(p_messages, v_ended);
  end if;
  perform pgnexus.settle_steps(v_ended);
  if p_notify then
    perform pgnexus.notify_done(v_ended);
  end if;
  return v_ended;
end
$$;

-- Results of requests that were never stored here.
create function pgnexus.store_strays(p_messages jsonb[]) returns uuid[]
language sql set search_path = pg_catalog, pgnexus, pg_temp as $$
  with inserted as (
    insert into pgnexus.job_results as j (
      request_id, status, workflow, agent_id, model, provider, output, error, prompt_tokens, completion_tokens,
      total_tokens, cached_tokens, cost, duration_ms, attempts, finished_at, reasoning_tokens, cache_write_tokens)
    select distinct on (f.request_id)
           f.request_id, f.status, 'LLMRequestWorkflow', f.agent_id, f.model, f.provider, f.output, f.error,
           f.prompt_tokens, f.completion_tokens, f.total_tokens, f.cached_tokens, f.cost, f.duration_ms, f.attempts,
           clock_timestamp(), f.reasoning_tokens, f.cache_write_tokens
    from pgnexus.read_results(p_messages) f
    where f.request_id is not null and not exists (select from pgnexus.job_results k where k.request_id = f.request_id)
    order by f.request_id, f.ordinal
    on conflict do nothing
    returning j.request_id
  )
  select array_agg(i.request_id) from inserted i
$$;

-- The same, with the results that ended their requests.
create function pgnexus.record_results(p_messages jsonb[], p_notify boolean default true)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
begin
  return query select e.request_id, e.result from pgnexus.ended_by(p_messages, pgnexus.end_requests(p_messages, p_notify), null) e;
end
$$;

-- Which of the messages ended these requests: the first of each. With p_wanted only those of it have their result with them.
create function pgnexus.ended_by(p_messages jsonb[], p_ended uuid[], p_wanted uuid[]) returns table (request_id uuid, result jsonb)
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
begin
  if p_wanted = '{}' then
    return query select e.id, null::jsonb from unnest(p_ended) as e (id);
  else
    return query
      select distinct on (e.id) e.id, case when w.id is not null or p_wanted is null then m.message end
      from unnest(p_messages) with ordinality as m (message, ordinal)
      join unnest(p_ended) as e (id) on e.id = pgnexus.try_uuid(m.message ->> 'request_id')
      left join unnest(p_wanted) as w (id) on w.id = e.id
      order by e.id, m.ordinal;
  end if;
end
$$;

-- What a late answer used is paid for, once; calls that used nothing are counted all the same.
create function pgnexus.book_late_results(p_messages jsonb[], p_ended uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus, pg_temp as $$
  update pgnexus.job_results j
  set prompt_tokens = l.prompt_tokens, completion_tokens = l.completion_tokens, total_tokens = l.total_tokens,
      cached_tokens = l.cached_tokens, cost = l.cost, attempts = greatest(j.attempts, l.attempts),
      reasoning_tokens = l.reasoning_tokens, cache_write_tokens = l.cache_write_tokens
  from (
    select distinct on (r.request_id) r.*
    from pgnexus.read_results(p_messages) r
    where r.total_tokens > 0 or r.attempts > 0 order by r.request_id, r.total_tokens desc nulls last, r.ordinal desc
  ) l
  where j.request_id = l.request_id and j.status in ('failed', 'timeout', 'cancelled')
    and coalesce(j.total_tokens, 0) = 0
$$;

-- Take results off a queue into job_results, all in this transaction: one row without a request that tells how many were taken,
-- and one for each request that ended. With p_wanted only the results of those requests are handed out, null are the others.
create function pgnexus.collect_results(p_queue text, p_limit int, p_notify boolean, p_wanted uuid[])
returns table (taken int, request_id uuid, result jsonb)
language plpgsql
set search_path = pg_catalog, pgnexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_messages pgmq.message_record[] := pgnexus.pop_results(p_queue, p_limit);
begin
  if v_messages is not null then
    return query select cardinality(v_messages), null::uuid, null::jsonb;
    return query select cardinality(v_messages), s.request_id, s.result
                 from pgnexus.store_messages(p_queue, v_messages, p_notify, p_wanted) s;
  end if;
end
$$;

create function pgnexus.take_results(p_queue text, p_limit int, p_notify boolean default true)
returns table (taken int, request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  return query select c.taken, c.request_id, c.result from pgnexus.collect_results(p_queue, p_limit, p_notify, null) c;
end
$$;

-- pgmq plans each of its pops anew; the queue that nearly all results are on has a plan that is kept.
create function pgnexus.pop_results(p_queue text, p_limit int) returns pgmq.message_record[]
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_messages pgmq.message_record[];
begin
  if p_queue = 'ai_results' then
    with popped as (
      delete from pgmq.q_ai_results q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_results n where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record order by p.msg_id) into v_messages from popped p;
  else
    select array_agg(m order by m.msg_id) into v_messages from pgmq.pop(p_queue, p_limit) m;
  end if;
  return v_messages;
end
$$;

-- What is no result goes to the queue's archive with the reason, all others into job_results.
create function pgnexus.store_messages(p_queue text, p_messages pgmq.message_record[], p_notify boolean, p_wanted uuid[] default null)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_results jsonb[];
  v_odd pgmq.message_record[];
begin
  select array_agg(m.message order by m.msg_id) filter (where is_result),
         array_agg(m) filter (where not is_result)
  into v_results, v_odd
  from unnest(p_messages) m
  cross join lateral (
    select pgnexus.try_uuid(m.message ->> 'request_id') is not null
           and coalesce(m.message ->> 'status', '') in ('success', 'failed', 'timeout', 'cancelled') as is_result offset 0) r;
  if v_odd is not null then
    perform nexus_api.archive_message(p_queue, m, 'no result: needs request_id (a UUID) and a status of success, failed, timeout or cancelled')
    from unnest(v_odd) m;
  end if;
  if v_results is not null then
    return query select e.request_id, e.result
                 from pgnexus.ended_by(v_results, pgnexus.end_requests(v_results, p_notify), p_wanted) e;
  end if;
end
$$;

-- The last resort against a message that no batch survives: the first one of the queue is tried alone, and goes to
-- the archive with the reason if it fails again. All in one transaction, so that no innocent one takes its place.
-- Returns nothing when it did not fail, or when there was none.
create function pgnexus.reject_result(p_queue text) returns table (msg_id bigint, reason text)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_message pgmq.message_record;
begin
  select * into v_message from pgmq.pop(p_queue, 1);
  if v_message.msg_id is null then
    return;
  end if;
  begin
    perform pgnexus.store_messages(p_queue, array[v_message], true);
  exception when others then
    if left(sqlstate, 2) in ('40', '53', '55', '57', '58') then
      raise;  -- the moment's fault, not the message's
    end if;
    reason := sqlerrm;
  end;
  if reason is null then
    raise exception using errcode = 'PN003', message = 'the message is sound';  -- and stays where it was
  end if;
  perform nexus_api.archive_message(p_queue, v_message, reason);
  msg_id := v_message.msg_id;
  return next;
exception when sqlstate 'PN003' then
  return;
end
$$;
