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

-- A result message as columns of job_results. One row a message, also for a message that is none: then
-- request_id is null.
create function pgnexus.read_results(p_messages jsonb[]) returns table (
  ordinal bigint, request_id uuid, status text, agent_id text, model text, provider text, output jsonb, error jsonb,
  prompt_tokens bigint, completion_tokens bigint, total_tokens bigint, cached_tokens bigint, cost numeric,
  duration_ms bigint, attempts int, message jsonb, reasoning_tokens bigint, cache_write_tokens bigint)
language sql immutable set search_path = pg_catalog, pgnexus, pg_temp as $$
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
         pgnexus.try_count(m.message #>> '{usage,prompt_tokens}'),
         pgnexus.try_count(m.message #>> '{usage,completion_tokens}'),
         coalesce(pgnexus.try_count(m.message #>> '{usage,total_tokens}'),
                  pgnexus.try_count(m.message #>> '{usage,prompt_tokens}')
                    + pgnexus.try_count(m.message #>> '{usage,completion_tokens}')),
         pgnexus.try_count(m.message #>> '{usage,cached_tokens}'),
         pgnexus.try_amount(m.message ->> 'cost'),
         pgnexus.try_count(m.message ->> 'latency_ms'),
         least(coalesce(pgnexus.try_count(m.message ->> 'attempts'), 0), 2147483647)::int,
         m.message,
         nullif(pgnexus.try_count(m.message #>> '{usage,reasoning_tokens}'), 0),
         nullif(pgnexus.try_count(m.message #>> '{usage,cache_write_tokens}'), 0)
  from unnest(p_messages) with ordinality as m (message, ordinal)
$$;

-- Record results, in the order given, each at its terminal state if its request has none yet. Returns those
-- that ended their request. A result whose request was never stored here is stored all the same.
create function pgnexus.record_results(p_messages jsonb[], p_notify boolean default true)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_ended uuid[];
  v_results jsonb[];
begin
  with firsts as (
    select distinct on (r.request_id) r.* from pgnexus.read_results(p_messages) r
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
    returning j.request_id, f.message
  ), inserted as (
    insert into pgnexus.job_results as j (
      request_id, status, workflow, agent_id, model, provider, output, error, prompt_tokens, completion_tokens,
      total_tokens, cached_tokens, cost, duration_ms, attempts, finished_at, reasoning_tokens, cache_write_tokens)
    select f.request_id, f.status, 'LLMRequestWorkflow', f.agent_id, f.model, f.provider, f.output, f.error,
           f.prompt_tokens, f.completion_tokens, f.total_tokens, f.cached_tokens, f.cost, f.duration_ms, f.attempts,
           clock_timestamp(), f.reasoning_tokens, f.cache_write_tokens
    from firsts f
    where not exists (select from pgnexus.job_results k where k.request_id = f.request_id)
    on conflict do nothing
    returning j.request_id
  )
  select array_agg(e.request_id), array_agg(e.message) into v_ended, v_results
  from (select u.request_id, u.message from updated u
        union all
        select i.request_id, f.message from inserted i join firsts f on f.request_id = i.request_id) e;

  if cardinality(v_ended) is distinct from cardinality(p_messages) then
    perform pgnexus.book_late_results(p_messages, v_ended);
  end if;
  perform pgnexus.settle_steps(v_ended);
  if p_notify then
    perform pgnexus.notify_done(v_ended);
  end if;
  return query select e.id, e.message from unnest(v_ended, v_results) as e (id, message);
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

-- Take results off a queue into job_results, all in this transaction.
create function pgnexus.take_results(p_queue text, p_limit int, p_notify boolean default true)
returns table (taken int, request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_messages pgmq.message_record[];
begin
  select array_agg(m order by m.msg_id) into v_messages from pgmq.pop(p_queue, p_limit) m;
  if v_messages is not null then
    return query select cardinality(v_messages), null::uuid, null::jsonb;
    return query select cardinality(v_messages), s.request_id, s.result
                 from pgnexus.store_messages(p_queue, v_messages, p_notify) s;
  end if;
end
$$;

-- What is no result goes to the queue's archive with the reason, all others into job_results.
create function pgnexus.store_messages(p_queue text, p_messages pgmq.message_record[], p_notify boolean)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_results jsonb[];
begin
  perform nexus_api.archive_message(p_queue, m, 'no result: needs request_id (a UUID) and a status of success, failed, timeout or cancelled')
  from unnest(p_messages) m
  where pgnexus.try_uuid(m.message ->> 'request_id') is null
     or coalesce(m.message ->> 'status', '') not in ('success', 'failed', 'timeout', 'cancelled');
  select array_agg(m.message order by m.msg_id) into v_results
  from unnest(p_messages) m where pgnexus.try_uuid(m.message ->> 'request_id') is not null;
  if v_results is not null then
    return query select r.request_id, r.result from pgnexus.record_results(v_results, p_notify) r;
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
