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

create function pgnexus.read_requests(p_requests jsonb[], p_now timestamptz) returns setof pgnexus.incoming
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select e.ordinal::int, t.request_id,
         e.element - '{timeout,delay,not_before,idempotency_key,idempotency_ttl,workflow,instance_id,job_id}'::text[]
           || jsonb_strip_nulls(jsonb_build_object(
                'v', coalesce(e.element -> 'v', '1'),
                'request_id', t.request_id,
                'complexity', coalesce(e.element ->> 'complexity', pgnexus.complexity_for(e.element ->> 'task_type')),
                'priority', coalesce(e.element ->> 'priority', 'standard'),
                'deadline', d.deadline)),
         t.due_at, d.deadline, e.element,
         row_number() over (partition by t.request_id order by e.ordinal) = 1
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
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_items pgnexus.incoming[];
  v_stored uuid[];
  v_lane text;
  v_messages jsonb[];
  v_clash uuid;
begin
  select array_agg(i order by i.ordinal) into v_items from pgnexus.read_requests(requests, v_now) i;
  if v_items is null then
    return;
  end if;
  perform pgnexus.check_requests(v_items);
  if exists (select from unnest(v_items) i where i.options ? 'idempotency_key') then
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

  if cardinality(v_stored) is distinct from cardinality(v_items) then
    select i.request_id into v_clash
    from unnest(v_items) i join pgnexus.job_results j on j.request_id = i.request_id
    where j.input <> pgnexus.request_body(i.message) limit 1;
    if found then
      raise exception using errcode = 'PN001',
        message = format('request_id %s was used before with another body', v_clash);
    end if;
  end if;

  for v_lane, v_messages in
    select pgnexus.lane(i.message ->> 'priority'), array_agg(i.message order by i.ordinal)
    from unnest(v_items) i
    where i.is_new and i.request_id = any (v_stored) and (i.due_at <= v_now) is not false
    group by 1
  loop
    perform pgmq.send_batch(v_lane, v_messages);
  end loop;
  insert into pgnexus.scheduled_requests (request_id, due_at, queue, message)
  select i.request_id, i.due_at, pgnexus.lane(i.message ->> 'priority'), i.message
  from unnest(v_items) i
  where i.is_new and i.request_id = any (v_stored) and i.due_at > v_now;

  if notify and v_stored is not null then
    perform pg_notify('pgnexus_requests', '');
  end if;
  return query
    select i.ordinal, i.request_id, j.status, i.is_new and coalesce(i.request_id = any (v_stored), false)
    from unnest(v_items) i join pgnexus.job_results j on j.request_id = i.request_id
    order by i.ordinal;
end
$$;
