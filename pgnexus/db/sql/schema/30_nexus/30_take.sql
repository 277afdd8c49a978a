-- T2: requests off their lanes into runs of LLMRequestWorkflow, with their first task claimed.

create function nexus.try_timestamptz(p_text text) returns timestamptz
language plpgsql stable as $$
begin
  return case when isfinite(p_text::timestamptz) then p_text::timestamptz end;
exception when others then
  return null;  -- the workflow's own validation will say what is wrong with it
end
$$;

-- The same. What is written the usual way, and is no date that a month may lack, is read without a look at what it raises.
create function nexus.read_time(p_text text) returns timestamptz
language sql stable as $$
  select case when p_text ~ '^[12]\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]0\d:[0-5]\d)$'
              then p_text::timestamptz else nexus.try_timestamptz(p_text) end
$$;

create function nexus.try_uuid(p_text text) returns uuid
language sql immutable parallel safe as $$
  select case when p_text ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then p_text::uuid end
$$;

-- Take up to p_limit messages off one lane. (pgmq plans each of its pops anew.)
create function nexus.pop_lane(p_lane text, p_limit int) returns pgmq.message_record[]
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_messages pgmq.message_record[];
begin
  if p_lane = 'ai_requests_interactive' then
    with popped as (
      delete from pgmq.q_ai_requests_interactive q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_requests_interactive n
        where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record) into v_messages from popped p;
  elsif p_lane = 'ai_requests' then
    with popped as (
      delete from pgmq.q_ai_requests q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_requests n
        where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record) into v_messages from popped p;
  elsif p_lane = 'ai_requests_batch' then
    with popped as (
      delete from pgmq.q_ai_requests_batch q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_requests_batch n
        where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record) into v_messages from popped p;
  end if;
  return v_messages;
end
$$;

-- Take up to p_limit messages off one lane, and start them.
create function nexus.take_lane(p_lane text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_popped pgmq.message_record[] := nexus.pop_lane(p_lane, p_limit);
  v_started int;
begin
  if v_popped is null then
    return;
  end if;
  return query select s.* from nexus.start_messages(p_lane, p_worker_id, v_popped) s;
  get diagnostics v_started = row_count;
  if v_started < cardinality(v_popped) and cardinality(v_popped) >= p_limit then
    perform pg_notify('pgnexus_requests', '');  -- fewer than wanted were started, but there may be more behind them
  end if;
end
$$;

-- Messages without a request_id go to the archive with the reason, cancelled and overdue ones are answered at once,
-- those taken up before are dropped, all others start.
create function nexus.start_messages(p_lane text, p_worker_id uuid, p_messages pgmq.message_record[])
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
#variable_conflict use_column
declare
  v_ids uuid[];
  v_inputs jsonb[];
  v_sent timestamptz[];
  v_deadlines timestamptz[];
  v_ended uuid[];
  v_started uuid[];
  v_step text;
begin
  select array_agg(f.id), array_agg(f.message), array_agg(f.enqueued_at), array_agg(nexus.read_time(f.message ->> 'deadline'))
  into v_ids, v_inputs, v_sent, v_deadlines
  from (
    select distinct on (u.id) u.id, m.message, m.enqueued_at
    from unnest(p_messages) m
    cross join lateral (select nexus.try_uuid(m.message ->> 'request_id') as id offset 0) u
    order by u.id, m.msg_id
  ) f where f.id is not null;
  if cardinality(v_ids) is distinct from cardinality(p_messages) then
    perform nexus_api.archive_message(p_lane, m, 'no request: needs request_id, a UUID')
    from unnest(p_messages) m where nexus.try_uuid(m.message ->> 'request_id') is null;
  end if;
  if v_ids is null then
    return;
  end if;
  v_ended := nexus.end_at_once(v_ids, v_inputs, v_deadlines);
  if v_ended is not null then
    select array_agg(a.id), array_agg(a.input), array_agg(a.sent), array_agg(a.deadline)
    into v_ids, v_inputs, v_sent, v_deadlines
    from unnest(v_ids, v_inputs, v_sent, v_deadlines) as a (id, input, sent, deadline) where a.id <> all (v_ended);
  end if;
  select array_agg(s.run_id), min(s.step_slug) into v_started, v_step
  from pgflow.start_claimed('llm_request_workflow', p_worker_id, v_ids, v_inputs) s;
  if cardinality(v_started) < cardinality(v_ids) then
    return query
      select i.id, v_step, 1, i.input, extract(epoch from i.deadline - clock_timestamp())::double precision,
             extract(epoch from clock_timestamp() - i.sent)::double precision
      from unnest(v_started) as s (id) join unnest(v_ids, v_inputs, v_sent, v_deadlines) as i (id, input, sent, deadline) on i.id = s.id;
  elsif v_started is not null then
    return query
      select i.id, v_step, 1, i.input, extract(epoch from i.deadline - clock_timestamp())::double precision,
             extract(epoch from clock_timestamp() - i.sent)::double precision
      from unnest(v_ids, v_inputs, v_sent, v_deadlines) as i (id, input, sent, deadline);
  end if;
  if coalesce(cardinality(v_started), 0) < cardinality(p_messages) then
    perform nexus.refuse_reused(p_messages);
  end if;
end
$$;

-- A message whose id has a run already is dropped: it was delivered twice. But whose result is wanted at ai_results, while the
-- run's goes elsewhere, is another request under the same name, and its stored row would wait for ever.
create function nexus.refuse_reused(p_messages pgmq.message_record[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform nexus.publish(
    array_agg('ai_results'::text),
    array_agg(nexus.failure(m.message, 'failed', 'invalid_request', 'its request_id was used before, with another reply_to')), true)
  from unnest(p_messages) m join pgflow.runs r on r.run_id = nexus.try_uuid(m.message ->> 'request_id')
  where coalesce(r.input ->> 'reply_to', 'ai_results') <> coalesce(m.message ->> 'reply_to', 'ai_results')
    and nexus.result_queue(r.input ->> 'reply_to') <> 'ai_results' and nexus.result_queue(m.message ->> 'reply_to') = 'ai_results'
  having count(*) > 0;
end
$$;

-- Answer the requests that were cancelled or whose deadline passed before anyone took them up; returns them, null if there are none. Each
-- gets a run that has failed already, so that its message, delivered twice, is answered once.
create function nexus.end_at_once(p_ids uuid[], p_inputs jsonb[], p_deadlines timestamptz[]) returns uuid[]
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_now timestamptz := clock_timestamp();
  v_ended uuid[];
  v_queues text[];
  v_results jsonb[];
begin
  if not exists (select from nexus.cancellations c where c.request_id = any (p_ids))
    and not exists (select from unnest(p_deadlines) as d (deadline) where d.deadline <= v_now)
  then
    return null;
  end if;
  with ended as (
    insert into pgflow.runs (run_id, flow_slug, status, input, failed_at, cancelled_at)
    select i.id, 'llm_request_workflow', 'failed', i.input, now(), case when c.request_id is not null then now() end
    from unnest(p_ids, p_inputs, p_deadlines) as i (id, input, deadline)
    left join nexus.cancellations c on c.request_id = i.id
    where c.request_id is not null or i.deadline <= v_now
    on conflict on constraint runs_pkey do nothing
    returning run_id, input, cancelled_at
  )
  select array_agg(e.run_id), array_agg(coalesce(e.input ->> 'reply_to', 'ai_results')),
         array_agg(case when e.cancelled_at is not null
                        then nexus.failure(e.input, 'cancelled', 'cancelled', 'cancelled before it was taken up')
                        else nexus.failure(e.input, 'timeout', 'timeout', 'its deadline passed before it was taken up') end)
  into v_ended, v_queues, v_results
  from ended e;
  if v_ended is not null then
    perform nexus.publish(v_queues, v_results, true);
    delete from nexus.cancellations c where c.request_id = any (v_ended);
  end if;
  return v_ended;
end
$$;

-- Whether a queue that requests come from has one to take. pgmq plans each pop anew; asking first, with a plan that is
-- kept, halves what a look at mostly empty queues costs.
create function nexus.has_requests(p_queue text) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  return case p_queue
    when 'ai_requests_interactive' then
      exists (select from pgmq.q_ai_requests_interactive q where q.vt <= clock_timestamp() order by q.msg_id limit 1)
    when 'llm_request_workflow' then
      exists (select from pgmq.q_llm_request_workflow q where q.vt <= clock_timestamp() order by q.msg_id limit 1)
    when 'ai_requests' then
      exists (select from pgmq.q_ai_requests q where q.vt <= clock_timestamp() order by q.msg_id limit 1)
    when 'ai_requests_batch' then
      exists (select from pgmq.q_ai_requests_batch q where q.vt <= clock_timestamp() order by q.msg_id limit 1)
  end;
end
$$;

-- Take up to p_limit requests: interactive ones first, then those that come back from a retry or a lost
-- worker, then standard ones, then batches; of all but the interactive ones at most p_others. attempt is the fence
-- to end the task with; seconds_left is null without a deadline, waited (on its lane) for those that come back.
create function nexus.take_requests(p_worker_id uuid, p_limit int, p_others int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql
set search_path = pg_catalog, nexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_left int := p_limit;
  v_others int := p_others;
  v_count int;
  v_lane text;
begin
  foreach v_lane in array '{ai_requests_interactive,llm_request_workflow,ai_requests,ai_requests_batch}'::text[] loop
    if v_lane <> 'ai_requests_interactive' then
      v_left := least(v_left, v_others);
      exit when v_left <= 0;
    end if;
    continue when not nexus.has_requests(v_lane);
    if v_lane = 'llm_request_workflow' then
      return query
        select c.run_id, c.step_slug, c.attempt, c.input,
               extract(epoch from nexus.try_timestamptz(c.input ->> 'deadline') - clock_timestamp())::double precision,
               null::double precision
        from pgflow.claim_chains('llm_request_workflow', p_worker_id, v_left) c;
    else
      return query select t.* from nexus.take_lane(v_lane, p_worker_id, v_left) t;
    end if;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
    v_others := v_others - case when v_lane = 'ai_requests_interactive' then 0 else v_count end;
    exit when v_left <= 0;
  end loop;
end
$$;

-- The last resort against a message that no batch survives: the first one of the lane is tried alone, and goes to
-- the archive with the reason if it fails again. All in one transaction, so that no innocent one takes its place.
-- Returns null when it did not fail, or when there was none.
create function nexus.reject_request(p_lane text, p_worker_id uuid) returns table (msg_id bigint, reason text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_message pgmq.message_record;
begin
  select * into v_message from pgmq.pop(p_lane, 1);
  if v_message.msg_id is null then
    return;
  end if;
  begin
    perform nexus.start_messages(p_lane, p_worker_id, array[v_message]);
  exception when others then
    if left(sqlstate, 2) in ('40', '53', '55', '57', '58') then
      raise;  -- the moment's fault, not the message's
    end if;
    reason := sqlerrm;
  end;
  if reason is null then
    raise exception using errcode = 'PN003', message = 'the message is sound';  -- and stays where it was
  end if;
  perform nexus_api.archive_message(p_lane, v_message, reason);
  if nexus.try_uuid(v_message.message ->> 'request_id') is not null then
    perform nexus.publish(array[coalesce(v_message.message ->> 'reply_to', 'ai_results')],
                          array[nexus.failure(v_message.message, 'failed', 'invalid_request', reason)], true);
  end if;
  msg_id := v_message.msg_id;
  return next;
exception when sqlstate 'PN003' then
  return;
end
$$;
