-- T1: accept requests. Runs in any connection, also inside the caller's own transaction.

create function pgnexus.lane(p_priority text) returns text
language sql immutable parallel safe as $$
  select case p_priority when 'interactive' then 'ai_requests_interactive' when 'standard' then 'ai_requests'
                         when 'batch' then 'ai_requests_batch' end
$$;

create function pgnexus.complexity_for(p_task_type text) returns text
language sql immutable parallel safe as $$
  select case when p_task_type in ('classifier', 'parser', 'simple_chat') then 'simple'
              when p_task_type in ('architect', 'code_generation', 'refactoring', 'qa') then 'complex'
              else 'medium' end
$$;

-- What makes two requests the same: everything but its name and the time it is asked at.
create function pgnexus.request_body(p_message jsonb) returns jsonb
language sql immutable parallel safe as $$
  select p_message - '{request_id,deadline,traceparent}'::text[]
$$;

create function pgnexus.request_hash(p_message jsonb) returns bytea
language sql immutable parallel safe as $$
  select sha256(convert_to(pgnexus.request_body(p_message)::text, 'UTF8'))
$$;

-- A request on its way in: the wire's message beside the options that stay on this side.
create type pgnexus.incoming as (
  ordinal     int,
  request_id  uuid,
  message     jsonb,
  due_at      timestamptz,
  deadline    timestamptz,
  options     jsonb,
  is_new      boolean
);

-- As it came, in the order given; that a request_id stands here once is for mark_repeats to see to. It sets no search_path, so that
-- it becomes a part of the statement that calls it, whose plan is kept.
create function pgnexus.read_requests(p_requests jsonb[], p_now timestamptz) returns setof pgnexus.incoming
language sql stable as $$
  select e.ordinal::int, t.request_id,
         e.element - '{timeout,delay,not_before,idempotency_key,idempotency_ttl,workflow,instance_id,job_id}'::text[]
           || jsonb_strip_nulls(jsonb_build_object(
                'v', coalesce(e.element -> 'v', '1'),
                'request_id', t.request_id,
                'complexity', coalesce(e.element ->> 'complexity', pgnexus.complexity_for(e.element ->> 'task_type')),
                'priority', coalesce(e.element ->> 'priority', 'standard'),
                'deadline', d.deadline)),
         t.due_at, d.deadline,
         case when e.element ?| '{idempotency_key,idempotency_ttl,workflow,instance_id,job_id}' then e.element else '{}' end,
         true
  from unnest(p_requests) with ordinality as e (element, ordinal)
  cross join lateral (
    select coalesce((e.element ->> 'request_id')::uuid, pgnexus.uuidv7()) as request_id,
           coalesce((e.element ->> 'not_before')::timestamptz,
                    p_now + make_interval(secs => (e.element ->> 'delay')::double precision)) as due_at
  ) as t
  cross join lateral (
    select coalesce((e.element ->> 'deadline')::timestamptz,
                    greatest(p_now, t.due_at)
                      + make_interval(secs => (e.element ->> 'timeout')::double precision)) as deadline
  ) as d
$$;

-- The first of those with the same request_id is new, the others are not.
create function pgnexus.mark_repeats(p_items pgnexus.incoming[]) returns pgnexus.incoming[]
language sql immutable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select array_agg(row(i.ordinal, i.request_id, i.message, i.due_at, i.deadline, i.options, i.n = 1)::pgnexus.incoming order by i.ordinal)
  from (select r.*, row_number() over (partition by r.request_id order by r.ordinal) as n from unnest(p_items) r) i
$$;

-- A message as it travels: what says no more than its absence would is left out, for it is stored twice more on its way.
create function pgnexus.to_send(p_message jsonb) returns jsonb
language sql immutable parallel safe as $$
  select p_message - array[case when p_message ->> 'model' = 'auto' then 'model' else '' end,
                           case when p_message ->> 'provider' = 'auto' then 'provider' else '' end,
                           case when p_message ->> 'reply_to' = 'ai_results' then 'reply_to' else '' end]
$$;

-- Put messages on a lane. (pgmq's own function plans its statements anew each time, three deep.)
create function pgnexus.send_requests(p_lane text, p_messages jsonb[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  if p_lane = 'ai_requests' then
    insert into pgmq.q_ai_requests (vt, message) select clock_timestamp(), m from unnest(p_messages) m;
  elsif p_lane = 'ai_requests_interactive' then
    insert into pgmq.q_ai_requests_interactive (vt, message) select clock_timestamp(), m from unnest(p_messages) m;
  elsif p_lane = 'ai_requests_batch' then
    insert into pgmq.q_ai_requests_batch (vt, message) select clock_timestamp(), m from unnest(p_messages) m;
  else
    raise exception 'there is no lane "%"', p_lane;
  end if;
end
$$;

-- Refuse what could never be answered, before anything is stored. SQLSTATE PN002.
create function pgnexus.check_requests(p_items pgnexus.incoming[]) returns void
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_fault text;
  v_no_queues text[];
begin
  with named as materialized (select distinct coalesce(i.message ->> 'reply_to', 'ai_results') as queue from unnest(p_items) i)
  select array_agg(n.queue) into v_no_queues from named n where not nexus_api.takes_results(n.queue);
  select format('request %s: %s', i.request_id, case
      when jsonb_typeof(i.message -> 'messages') is distinct from 'array'
        or jsonb_array_length(i.message -> 'messages') = 0 then 'messages must be an array that is not empty'
      when pgnexus.lane(i.message ->> 'priority') is null
        then format('priority "%s" is none of interactive, standard, batch', i.message ->> 'priority')
      when (i.message ->> 'complexity') not in ('simple', 'medium', 'complex', 'auto')
        then format('complexity "%s" is none of simple, medium, complex, auto', i.message ->> 'complexity')
      when not coalesce(i.deadline between '2000-01-01' and '9000-01-01', true)
        or not coalesce(i.due_at between '2000-01-01' and '9000-01-01', true)
        then 'deadline, timeout, delay and not_before must lead to a time between the years 2000 and 9000'
      when exists (select from pgmq.meta m where m.queue_name = i.message ->> 'reply_to')
        then format('reply_to "%s" is a queue of requests, or a flow''s own; name one for results',
                    i.message ->> 'reply_to')
      else format('reply_to "%s" names no queue; create it first with select nexus_api.create_queue(''%1$s'')',
                  i.message ->> 'reply_to') end)
  into v_fault
  from unnest(p_items) i
  where jsonb_typeof(i.message -> 'messages') is distinct from 'array'
     or jsonb_array_length(i.message -> 'messages') = 0
     or pgnexus.lane(i.message ->> 'priority') is null
     or (i.message ->> 'complexity') not in ('simple', 'medium', 'complex', 'auto')
     or not coalesce(i.deadline between '2000-01-01' and '9000-01-01', true)
     or not coalesce(i.due_at between '2000-01-01' and '9000-01-01', true)
     or coalesce(i.message ->> 'reply_to', 'ai_results') = any (v_no_queues)
  limit 1;
  if v_fault is not null then
    raise exception using errcode = 'PN002', message = v_fault;
  end if;
end
$$;

-- Give requests whose idempotency key is taken the identity of the request that has it.
create function pgnexus.claim_keys(p_items pgnexus.incoming[], p_now timestamptz) returns pgnexus.incoming[]
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_clash record;
  v_items pgnexus.incoming[];
begin
  -- in the order of the keys, so that two batches that share some cannot block one another
  insert into pgnexus.idempotency_keys as k (key, request_id, body_hash, expires_at)
  select distinct on (i.options ->> 'idempotency_key')
         i.options ->> 'idempotency_key', i.request_id, pgnexus.request_hash(i.message),
         p_now + make_interval(secs => coalesce((i.options ->> 'idempotency_ttl')::double precision, 604800))
  from unnest(p_items) i
  where i.options ->> 'idempotency_key' is not null
  order by i.options ->> 'idempotency_key', i.ordinal
  on conflict (key) do update
    set request_id = excluded.request_id, body_hash = excluded.body_hash, expires_at = excluded.expires_at
    where k.expires_at <= p_now;
  select k.key, k.request_id into v_clash
  from unnest(p_items) i join pgnexus.idempotency_keys k on k.key = i.options ->> 'idempotency_key'
  where k.body_hash <> pgnexus.request_hash(i.message) limit 1;
  if found then
    raise exception using errcode = 'PN001', message = format(
      'idempotency_key "%s" was used before for request %s with another body', v_clash.key, v_clash.request_id);
  end if;
  select array_agg(row(i.ordinal, coalesce(k.request_id, i.request_id), i.message, i.due_at, i.deadline, i.options,
                       i.is_new and (k.key is null or k.request_id = i.request_id))::pgnexus.incoming
                   order by i.ordinal)
  into v_items
  from unnest(p_items) i left join pgnexus.idempotency_keys k on k.key = i.options ->> 'idempotency_key';
  return v_items;
end
$$;

-- Accept requests. Each element is a message of the wire (docs/wire.md), beside options that stay on this side:
--   timeout (seconds until its deadline; none when absent), delay (seconds) or not_before (timestamp),
--   idempotency_key, idempotency_ttl (seconds), workflow, instance_id, job_id.
-- request_id, v, complexity and priority are filled in where they are absent. Returns a row an element;
-- created is false where the same request had been accepted before.
-- Errors: PN001, a request_id or idempotency_key used before with another body; PN002, a request that could
-- never be answered. Nothing of the array is stored then.
create function pgnexus.enqueue(requests jsonb[], notify boolean default true)
returns table (ordinal int, request_id uuid, status text, created boolean)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_items pgnexus.incoming[];
  v_new pgnexus.incoming[];
  v_stored uuid[];
  v_odd boolean;
  v_keys boolean;
  v_ids uuid[];
  v_lane text;
  v_messages jsonb[];
  v_clash uuid;
begin
  -- odd is what check_requests must look at; most are not (offset 0: read once, not once for each use)
  select array_agg(i),
         bool_or(jsonb_typeof(i.message -> 'messages') is distinct from 'array' or i.message -> 'messages' = '[]'
                 or (i.message ->> 'priority') not in ('interactive', 'standard', 'batch')
                 or (i.message ->> 'complexity') not in ('simple', 'medium', 'complex', 'auto')
                 or i.message ->> 'reply_to' <> 'ai_results' or i.due_at is not null
                 or not coalesce(i.deadline between '2000-01-01' and '9000-01-01', true)),
         bool_or(i.options ? 'idempotency_key'), array_agg(i.request_id)
  into v_items, v_odd, v_keys, v_ids
  from (select r.* from pgnexus.read_requests(requests, v_now) r offset 0) i;
  if v_items is null then
    return;
  end if;
  if v_odd then
    perform pgnexus.check_requests(v_items);
  end if;
  if (select count(distinct d.id) < count(*) from unnest(v_ids) as d (id)) then
    v_items := pgnexus.mark_repeats(v_items);
  end if;
  if v_keys then
    v_items := pgnexus.claim_keys(v_items, v_now);
  end if;

  with stored as (
    insert into pgnexus.job_results as j (
      request_id, status, workflow, instance_id, job_id, agent_id, task_type, complexity, priority, model, provider,
      input, retry_of, enqueued_at, deadline)
    select i.request_id, case when i.due_at > v_now then 'scheduled' else 'enqueued' end,
           coalesce(i.options ->> 'workflow', 'LLMRequestWorkflow'), (i.options ->> 'instance_id')::uuid,
           i.options ->> 'job_id', i.message ->> 'agent_id', i.message ->> 'task_type', i.message ->> 'complexity',
           i.message ->> 'priority', i.message ->> 'model', i.message ->> 'provider',
           pgnexus.request_body(i.message), (i.message ->> 'retry_of')::uuid, v_now, i.deadline
    from unnest(v_items) i where i.is_new
    on conflict do nothing
    returning j.request_id
  )
  select array_agg(s.request_id) into v_stored from stored s;

  v_new := v_items;
  if cardinality(v_stored) is distinct from cardinality(v_items) then
    select i.request_id into v_clash
    from unnest(v_items) i join pgnexus.job_results j on j.request_id = i.request_id
    where j.input <> pgnexus.request_body(i.message) limit 1;
    if found then
      raise exception using errcode = 'PN001',
        message = format('request_id %s was used before with another body', v_clash);
    end if;
    v_new := array(select i from unnest(v_items) i join unnest(v_stored) s (id) on s.id = i.request_id where i.is_new order by i.ordinal);
  end if;

  for v_lane, v_messages in
    select pgnexus.lane(i.message ->> 'priority'), array_agg(pgnexus.to_send(i.message) order by i.ordinal)
    from unnest(v_new) i where (i.due_at <= v_now) is not false
    group by 1
  loop
    perform pgnexus.send_requests(v_lane, v_messages);
  end loop;
  if v_odd then  -- as those that may not run yet are
    insert into pgnexus.scheduled_requests (request_id, due_at, queue, message)
    select i.request_id, i.due_at, pgnexus.lane(i.message ->> 'priority'), i.message
    from unnest(v_new) i where i.due_at > v_now;
  end if;

  if notify and v_stored is not null then
    perform pg_notify('pgnexus_requests', '');
  end if;
  if cardinality(v_new) = cardinality(v_items) then
    return query
      select i.ordinal, i.request_id, case when i.due_at > v_now then 'scheduled' else 'enqueued' end, true from unnest(v_items) i;
  else
    return query
      select i.ordinal, i.request_id, j.status, i.is_new and coalesce(i.request_id = any (v_stored), false)
      from unnest(v_items) i join pgnexus.job_results j on j.request_id = i.request_id
      order by i.ordinal;
  end if;
end
$$;
