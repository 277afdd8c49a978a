-- The router whole: limits, budgets, breakers, reservations, parked requests, kept answers, chunks of streams. What
-- waits or runs goes on.

alter table pgnexus.job_results
  add column reasoning_tokens bigint,
  add column cache_write_tokens bigint,
  add constraint more_amounts_are_nonnegative check (reasoning_tokens >= 0 and cache_write_tokens >= 0);

alter table nexus.attempts
  add column cache_write_tokens bigint not null default 0,
  add column reasoning_tokens bigint not null default 0,
  add column estimated boolean not null default false,
  add constraint more_amounts_are_nonnegative check (cache_write_tokens >= 0 and reasoning_tokens >= 0);

drop view nexus.metrics;
drop function nexus.book(uuid, jsonb[]);
drop function nexus.count_calls(jsonb, uuid, int);
drop function pgnexus.read_results(jsonb[]);
drop function nexus.take_requests(uuid, int, int);
drop function nexus.take_lane(text, uuid, int);
drop function nexus.start_messages(text, uuid, pgmq.message_record[]);

-- Claim tasks from the flow's queue: those that were retried, released or recovered. Their messages are
-- deleted at once, since a lease is the worker's sign of life, not a message's visibility. In two statements: a message may be
-- committed while the first one begins, and only the second is sure to see the task as the message's sender left it.
create or replace function pgflow.claim_chains(p_flow_slug text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb)
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_messages jsonb[];
begin
  select array_agg(m.message) into v_messages from pgmq.pop(pgflow.queue_name(p_flow_slug), p_limit) m;
  if v_messages is null then
    return;
  end if;
  return query
  with popped as materialized (
    select case when m.message ->> 'run_id' ~ '^[0-9a-f-]{36}$' then (m.message ->> 'run_id')::uuid end as run_id,
           m.message ->> 'step_slug' as step_slug
    from unnest(v_messages) as m (message) order by 1
  ), claimed as (
    update pgflow.step_tasks t
    set status = 'started', attempts_count = t.attempts_count + 1, started_at = now(),
        last_worker_id = p_worker_id, message_id = null
    from popped
    where t.run_id = popped.run_id and t.step_slug = popped.step_slug and t.task_index = 0
      and t.status = 'queued' and t.not_before is null
    returning t.run_id, t.step_slug, t.attempts_count
  )
  select c.run_id, c.step_slug, c.attempts_count, r.input
  from claimed c join pgflow.runs r using (run_id);
end
$$;

-- Move tasks whose time has come onto their flows' queues; tells how many, and the seconds until the next one (null if
-- there is none).
create or replace function pgflow.send_due_tasks(p_limit int default 1000) returns table (sent int, next_in double precision)
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
declare
  v_due pgflow.task_key[];
  v_now timestamptz := clock_timestamp();  -- called in the query, it would keep the index from being searched by it
begin
  with due as (
    select t.run_id, t.step_slug, t.task_index from pgflow.step_tasks t
    where t.not_before <= v_now
    order by t.not_before limit p_limit
    for update skip locked
  ), moved as (
    update pgflow.step_tasks t set not_before = null
    from due where t.run_id = due.run_id and t.step_slug = due.step_slug and t.task_index = due.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, null::bigint
  )
  select array_agg(row(m.*)::pgflow.task_key) into v_due from moved m;
  v_due := pgflow.keep_open(v_due);
  perform pgflow.send_queued(v_due);
  return query
    select coalesce(cardinality(v_due), 0),
           (select greatest(extract(epoch from t.not_before - clock_timestamp()), 0)::double precision
            from pgflow.step_tasks t where t.not_before < 'infinity' order by t.not_before limit 1);
end
$$;

-- Refuse what could never be answered, before anything is stored. SQLSTATE PN002.
create or replace function pgnexus.check_requests(p_items pgnexus.incoming[]) returns void
language plpgsql stable set search_path = pg_catalog, pgnexus as $$
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

-- A result message as columns of job_results. One row a message, also for a message that is none: then
-- request_id is null.
create or replace function pgnexus.read_results(p_messages jsonb[]) returns table (
  ordinal bigint, request_id uuid, status text, agent_id text, model text, provider text, output jsonb, error jsonb,
  prompt_tokens bigint, completion_tokens bigint, total_tokens bigint, cached_tokens bigint, cost numeric,
  duration_ms bigint, attempts int, message jsonb, reasoning_tokens bigint, cache_write_tokens bigint)
language sql immutable set search_path = pg_catalog, pgnexus as $$
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
create or replace function pgnexus.record_results(p_messages jsonb[], p_notify boolean default true)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus as $$
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
create or replace function pgnexus.book_late_results(p_messages jsonb[], p_ended uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus as $$
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

-- Requests whose books were written to after, or while, somebody else ended them; see nexus.amend_results. No key: whoever
-- writes here holds locks, and shall wait for nobody.
create table nexus.late_calls (
  request_id uuid not null,
  noted_at   timestamptz not null default clock_timestamp()
);

-- Tokens, cost and latency of the calls, by hour and by all that one asks for.
create view nexus.metrics as
  select date_trunc('hour', started_at) as hour, provider, model, complexity, task_type, agent_id, outcome,
         count(*) as calls, sum(prompt_tokens) as prompt_tokens, sum(completion_tokens) as completion_tokens,
         sum(cached_tokens) as cached_tokens, sum(cost) as cost,
         count(*) filter (where cost is null and (outcome = 'success' or prompt_tokens + completion_tokens > 0))
           as calls_of_unknown_cost,
         percentile_cont(0.5) within group (order by duration_ms) as p50_ms,
         percentile_cont(0.99) within group (order by duration_ms) as p99_ms,
         sum(cache_write_tokens) as cache_write_tokens, sum(reasoning_tokens) as reasoning_tokens,
         sum(cost) filter (where estimated) as estimated_cost
  from nexus.attempts
  group by 1, 2, 3, 4, 5, 6, 7;

-- Every failed run of LLMRequestWorkflow publishes its failure here, whatever failed it: the workflow, the last
-- lost worker, a cancel, an operator. What the workflow told of it is in its failed task.
create or replace function nexus.publish_failed_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus as $$
declare
  v_error text;
  v_details jsonb;
  v_attempts int;
begin
  delete from nexus.parked p where p.run_id = new.run_id;  -- its turn will not come
  select t.error_message, t.output, t.attempts_count into v_error, v_details, v_attempts
  from pgflow.step_tasks t where t.run_id = new.run_id and t.status = 'failed'
  order by t.failed_at desc limit 1;
  perform nexus.publish(
    array[coalesce(new.input ->> 'reply_to', 'ai_results')],
    array[nexus.count_calls(case
      when new.cancelled_at is not null then nexus.failure(new.input, 'cancelled', 'cancelled', 'cancelled')
      else nexus.failure(new.input, 'failed', 'worker_lost', coalesce(v_error, 'the run failed'))
           || jsonb_build_object('attempts', coalesce(v_attempts, 0)) || coalesce(v_details, '{}')
    end, new.run_id)],
    true);
  return null;
end
$$;

-- Take up to p_limit messages off one lane, and start them.
create or replace function nexus.take_lane(p_lane text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_popped pgmq.message_record[];
  v_started int;
begin
  select array_agg(m order by m.msg_id) into v_popped from pgmq.pop(p_lane, p_limit) m;
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
create or replace function nexus.start_messages(p_lane text, p_worker_id uuid, p_messages pgmq.message_record[])
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql set search_path = pg_catalog, nexus as $$
#variable_conflict use_column
declare
  v_ids uuid[];
  v_inputs jsonb[];
  v_sent timestamptz[];
  v_ended uuid[];
begin
  perform nexus_api.archive_message(p_lane, m, 'no request: needs request_id, a UUID')
  from unnest(p_messages) m where nexus.try_uuid(m.message ->> 'request_id') is null;
  select array_agg(f.id), array_agg(f.message), array_agg(f.enqueued_at) into v_ids, v_inputs, v_sent
  from (
    select distinct on (u.id) u.id, m.message, m.enqueued_at
    from unnest(p_messages) m cross join lateral nexus.try_uuid(m.message ->> 'request_id') as u (id)
    where u.id is not null order by u.id, m.msg_id
  ) f;
  if v_ids is null then
    return;
  end if;
  v_ended := nexus.answer_ended(v_ids, v_inputs);
  return query
    select s.run_id, s.step_slug, s.attempt, i.input,
           extract(epoch from nexus.try_timestamptz(i.input ->> 'deadline') - clock_timestamp())::double precision,
           extract(epoch from clock_timestamp() - i.sent)::double precision
    from unnest(v_ids, v_inputs, v_sent) as i (id, input, sent)
    join pgflow.start_claimed(
      'llm_request_workflow', p_worker_id,
      (select array_agg(a.id) from unnest(v_ids) as a (id) where a.id <> all (v_ended)),
      (select array_agg(a.input) from unnest(v_ids, v_inputs) as a (id, input) where a.id <> all (v_ended))
    ) s on s.run_id = i.id;
end
$$;

-- Take up to p_limit requests: interactive ones first, then those that come back from a retry or a lost
-- worker, then standard ones, then batches; of all but the interactive ones at most p_others. attempt is the fence
-- to end the task with; seconds_left is null without a deadline, waited (on its lane) for those that come back.
create or replace function nexus.take_requests(p_worker_id uuid, p_limit int, p_others int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql set search_path = pg_catalog, nexus as $$
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

-- One row a request whose task is queued with not_before = 'infinity'. Whoever changes a row holds its task's lock
-- first, as everybody who ends a task does. since is when its run was started, so that a request that is parked once
-- more keeps its place.
create table nexus.parked (
  run_id    uuid primary key,
  scope     text collate "C" not null,  -- what it waits for: a limit's scope, 'share', or 'flight:' and a key
  lane      smallint not null,          -- 0 interactive, 1 standard, 2 batch
  agent_id  text collate "C" not null,  -- '': it names none
  since     timestamptz not null,
  step_slug text not null,
  parked_at timestamptz not null default now(),
  deadline  timestamptz,
  constraint lane_is_valid check (lane between 0 and 2)
);

-- Found by jumps from agent to agent, and from scope to scope: nobody reads past those whose turn it is not.
create index parked_by_turn on nexus.parked (scope, lane, agent_id, since, run_id);

create index parked_by_deadline on nexus.parked (deadline) where deadline is not null;

create index parked_flights on nexus.parked (parked_at) where scope >= 'flight:' and scope < 'flight;';

-- Put claimed tasks back until their turn comes. An attempt that called a provider counts, for the books name the calls
-- by it; any other does not. Returns those that were parked; the others had been taken from this worker.
create function nexus.park(
  p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_scopes text[], p_priorities text[], p_agents text[],
  p_deadlines text[], p_counts boolean[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_done uuid[];
  v_scope text;
begin
  for v_scope in
    select distinct s.scope from unnest(p_scopes) as s (scope)
    where s.scope not like 'flight:%' and (select true from nexus.parked p where p.scope = s.scope limit 1) is null
  loop
    perform pg_notify('pgnexus_parked', left(v_scope, 1000));  -- the first of a line tells the others of it
  end loop;
  with named as materialized (
    select i.* from unnest(p_runs, p_steps, p_attempts, p_counts) as i (run_id, step_slug, attempt, counts) order by i.run_id
  ), back as (
    update pgflow.step_tasks t
    set status = 'queued', started_at = null, queued_at = now(), not_before = 'infinity',
        attempts_count = t.attempts_count - case when i.counts then 0 else 1 end
    from named i
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id
  )
  select array_agg(b.run_id) into v_done from back b;
  insert into nexus.parked (run_id, scope, lane, agent_id, since, step_slug, deadline)
  select i.run_id, i.scope, case i.priority when 'interactive' then 0 when 'batch' then 2 else 1 end,
         coalesce(left(i.agent, 200), ''), r.started_at, i.step_slug, nexus.try_timestamptz(i.deadline)
  from unnest(p_runs, p_scopes, p_priorities, p_agents, p_steps, p_deadlines)
    as i (run_id, scope, priority, agent, step_slug, deadline)
  cross join lateral (select r.started_at from pgflow.runs r where r.run_id = i.run_id and r.status = 'started' limit 1) r
  where i.run_id = any (v_done)
  on conflict (run_id) do update  -- left behind by somebody who moved the task by hand
  set scope = excluded.scope, lane = excluded.lane, agent_id = excluded.agent_id, step_slug = excluded.step_slug,
      parked_at = excluded.parked_at, deadline = excluded.deadline;
  perform nexus.unpark_runs(array(
    select p.run_id from nexus.parked p
    where p.run_id = any (v_done) and p.scope like 'flight:%' and not nexus.still_flies(p.scope)));
  return query select unnest(v_done);
end
$$;

-- Whether a flight is under way, and cannot end before this transaction, which parks a follower. One that is ending at
-- this moment, and would not see the follower, counts for ended.
create function nexus.still_flies(p_scope text) returns boolean
language plpgsql set search_path = pg_catalog, nexus as $$
begin
  perform from nexus.flights f where f.key = decode(substr(p_scope, 8), 'hex') for key share skip locked;
  return found;
end
$$;

-- The next p_limit of a scope's lane: agents take turns, beginning after p_after, each with its oldest.
create function nexus.next_parked(p_scope text, p_lane smallint, p_after text, p_limit int) returns uuid[]
language plpgsql stable set search_path = pg_catalog, nexus as $$
begin
  return (
    with recursive agents as (
      select a.agent_id, a.agent_id as first, 1 as n
      from (select coalesce(
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane and p.agent_id > p_after
         order by p.agent_id limit 1),
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane order by p.agent_id limit 1)
      ) as agent_id) a
      where a.agent_id is not null
      union all
      select b.agent_id, a.first, a.n + 1
      from agents a cross join lateral (select coalesce(
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane and p.agent_id > a.agent_id
         order by p.agent_id limit 1),
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane order by p.agent_id limit 1)
      ) as agent_id) b
      where a.n < p_limit and b.agent_id <> a.first
    ), turns as (
      select ceil(p_limit::numeric / nullif(count(*), 0))::int as each from agents
    )
    select array_agg(f.run_id order by f.turn, f.n)
    from (
      select o.run_id, o.turn, a.n
      from agents a cross join turns t cross join lateral (
        select l.run_id, row_number() over (order by l.since, l.run_id) as turn
        from (select p.run_id, p.since from nexus.parked p
              where p.scope = p_scope and p.lane = p_lane and p.agent_id = a.agent_id
              order by p.since, p.run_id limit t.each) l) o
      order by o.turn, a.n limit p_limit
    ) f);
end
$$;

-- Claim parked requests for a worker, and drop what is no longer parked. Those that somebody has locked are ending.
create function nexus.claim_parked(p_worker_id uuid, p_runs uuid[], out runs uuid[], out agents text[])
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_claimed uuid[];
begin
  with held as materialized (
    select t.run_id, t.step_slug, t.task_index
    from nexus.parked p join pgflow.step_tasks t on t.run_id = p.run_id and t.step_slug = p.step_slug and t.task_index = 0
    where p.run_id = any (p_runs) and t.status = 'queued' and t.not_before = 'infinity'
    order by t.run_id for update of t skip locked
  ), claimed as (
    update pgflow.step_tasks t
    set status = 'started', attempts_count = t.attempts_count + 1, started_at = now(), last_worker_id = p_worker_id,
        message_id = null, not_before = null
    from held h where t.run_id = h.run_id and t.step_slug = h.step_slug and t.task_index = h.task_index
    returning t.run_id
  )
  select array_agg(c.run_id) into v_claimed from claimed c;
  with gone as (
    delete from nexus.parked p
    where p.run_id = any (p_runs) and (
      p.run_id = any (v_claimed)
      or not exists (select from pgflow.step_tasks t where t.run_id = p.run_id and t.step_slug = p.step_slug
                       and t.task_index = 0 and t.status = 'queued' and t.not_before = 'infinity'))
    returning p.run_id, p.agent_id
  )
  select array_agg(g.run_id order by i.n), array_agg(g.agent_id order by i.n) into runs, agents
  from unnest(p_runs) with ordinality as i (run_id, n) join gone g on g.run_id = i.run_id
  where g.run_id = any (v_claimed);
end
$$;

-- Take up to p_limit parked requests of a scope, as nexus.take_requests does: interactive ones first, of the others at most
-- p_others; within a lane agents take turns, beginning after p_after, who had the last one. In the order of turns.
create function nexus.take_parked(
  p_worker_id uuid, p_scope text, p_limit int, p_others int default null, p_after text default ''
) returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  v_left int := p_limit;
  v_others int := coalesce(p_others, p_limit);
  v_after text := coalesce(p_after, '');
  v_lane smallint;
  v_next uuid[];
  v_runs uuid[] := '{}';
  v_agents text[] := '{}';
  v_taken record;
begin
  perform pg_advisory_xact_lock(hashtextextended('nexus.take_parked ' || p_scope, 0));  -- two at once would choose the same
  foreach v_lane in array '{0,1,2}'::smallint[] loop
    if v_lane > 0 then
      v_left := least(v_left, v_others);
    end if;
    while v_left > 0 loop  -- an agent that has fewer than its turns leaves them to the others
      v_next := nexus.next_parked(p_scope, v_lane, v_after, v_left);
      exit when v_next is null;
      v_taken := nexus.claim_parked(p_worker_id, v_next);
      exit when v_taken.runs is null;
      v_runs := v_runs || v_taken.runs;
      v_agents := v_agents || v_taken.agents;
      v_after := v_agents[cardinality(v_agents)];
      v_left := v_left - cardinality(v_taken.runs);
      v_others := v_others - case when v_lane = 0 then 0 else cardinality(v_taken.runs) end;
    end loop;
  end loop;
  return query select c.* from nexus.describe_claims(v_runs, v_agents) c;
end
$$;

-- Take up to p_limit parked requests whose deadline has passed, from whatever line, so that somebody answers them.
create function nexus.take_overdue(p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  return query select d.* from nexus.claim_parked(p_worker_id, array(
    select p.run_id from nexus.parked p where p.deadline <= v_now order by p.deadline limit p_limit)) c
  cross join lateral nexus.describe_claims(c.runs, c.agents) d;
end
$$;

create function nexus.describe_claims(p_runs uuid[], p_agents text[])
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language sql set search_path = pg_catalog, nexus as $$
  select r.run_id, t.step_slug, t.attempts_count, r.input,
         extract(epoch from nexus.try_timestamptz(r.input ->> 'deadline') - clock_timestamp())::double precision, i.agent
  from unnest(p_runs, p_agents) with ordinality as i (run_id, agent, n)
  join pgflow.runs r on r.run_id = i.run_id
  join pgflow.step_tasks t on t.run_id = i.run_id and t.status = 'started'
  order by i.n
$$;

-- The scopes in which requests are parked, beginning after p_after, but no flights: their ends send them on.
create function nexus.parked_scopes(p_after text, p_limit int) returns setof text
language plpgsql stable set search_path = pg_catalog, nexus set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  v_scope text collate "C" := coalesce(p_after, '');
  v_found int := 0;
begin
  while v_found < p_limit loop
    select p.scope into v_scope from nexus.parked p where p.scope > v_scope order by p.scope limit 1;
    exit when v_scope is null;
    if v_scope like 'flight:%' then
      v_scope := 'flight;';  -- next to all of them
      continue;
    end if;
    v_found := v_found + 1;
    return next v_scope;
  end loop;
end
$$;

-- Parked requests back to their queue, now; returns how many.
create function nexus.unpark_runs(p_runs uuid[]) returns int
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_tasks pgflow.task_key[];
begin
  with held as materialized (
    select t.run_id, t.step_slug, t.task_index
    from nexus.parked p join pgflow.step_tasks t on t.run_id = p.run_id and t.step_slug = p.step_slug and t.task_index = 0
    where p.run_id = any (p_runs) and t.status = 'queued' and t.not_before = 'infinity'
    order by t.run_id for update of t skip locked
  ), back as (
    update pgflow.step_tasks t set not_before = null, queued_at = now()
    from held h where t.run_id = h.run_id and t.step_slug = h.step_slug and t.task_index = h.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, null::bigint
  )
  select array_agg(row(b.*)::pgflow.task_key) into v_tasks from back b;
  if v_tasks is null then
    return 0;
  end if;
  delete from nexus.parked p where p.run_id in (select k.run_id from unnest(v_tasks) k);
  perform pgflow.send_queued(v_tasks);
  perform pg_notify('pgnexus_requests', '');
  return cardinality(v_tasks);
end
$$;

-- All of a scope back to their queue: what they waited for is there, or is gone.
create function nexus.unpark(p_scope text) returns int
language sql set search_path = pg_catalog, nexus as $$
  select nexus.unpark_runs(array(select p.run_id from nexus.parked p where p.scope = p_scope))
$$;

-- Those that have waited for a flight longer than p_age: whoever should have ended it may have died.
create function nexus.unpark_stranded(p_age interval, p_limit int) returns int
language sql set search_path = pg_catalog, nexus as $$
  select nexus.unpark_runs(array(
    select p.run_id from nexus.parked p
    where p.scope >= 'flight:' and p.scope < 'flight;' and p.parked_at < now() - p_age
    order by p.parked_at limit p_limit))
$$;

-- Who sent the messages of the lanes after those given (null: after all but the last p_limit), with their numbers;
-- at most p_limit messages and a megabyte a lane. last is the last one of the lane, seen how many there were.
create function nexus.look_ahead(p_after jsonb, p_limit int)
returns table (lane text, last bigint, seen bigint, agent_id text, msg_ids bigint[])
language plpgsql set search_path = pg_catalog, nexus as $$
#variable_conflict use_column
begin
  foreach lane in array '{ai_requests_interactive,ai_requests,ai_requests_batch}'::text[] loop
    return query execute format(
      'with found as materialized (
         select q.msg_id, q.message, sum(pg_column_size(q.message)) over (order by q.msg_id) - pg_column_size(q.message) as before
         from pgmq.%1$I q
         where q.msg_id > coalesce($1, (select max(m.msg_id) from pgmq.%1$I m) - $2) and q.vt <= clock_timestamp()
         order by q.msg_id limit $2
       )
       select $3, max(max(f.msg_id)) over (), (sum(count(*)) over ())::bigint, coalesce(f.message ->> ''agent_id'', ''''),
              array_agg(f.msg_id order by f.msg_id)
       from found f where f.before < 1048576 group by 4', pgmq.format_table_name(lane, 'q'))
    using (p_after ->> lane)::bigint, p_limit, lane;
  end loop;
end
$$;

-- Take these messages off their lane, out of their turn, and park them in the line of shares; returns how many.
create function nexus.divert(p_worker_id uuid, p_lane text, p_msg_ids bigint[]) returns int
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_messages pgmq.message_record[];
  v_parked int;
begin
  execute format(
    'with taken as (
       delete from pgmq.%1$I q where q.msg_id in (
         select m.msg_id from pgmq.%1$I m where m.msg_id = any ($1) and m.vt <= clock_timestamp() for update skip locked)
       returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
     )
     select array_agg(row(t.*)::pgmq.message_record order by t.msg_id) from taken t', pgmq.format_table_name(p_lane, 'q'))
  into v_messages using p_msg_ids;
  if v_messages is null then
    return 0;
  end if;
  select count(p.run_id) into v_parked
  from (select array_agg(s.run_id) as runs, array_agg(s.step_slug) as steps, array_agg(s.attempt) as attempts,
               array_agg('share'::text) as scopes, array_agg(s.input ->> 'priority') as priorities,
               array_agg(s.input ->> 'agent_id') as agents, array_agg(s.input ->> 'deadline') as deadlines,
               array_agg(false) as counts
        from nexus.start_messages(p_lane, p_worker_id, v_messages) s) c
  cross join lateral nexus.park(p_worker_id, c.runs, c.steps, c.attempts, c.scopes, c.priorities, c.agents, c.deadlines, c.counts)
    as p (run_id);
  return v_parked;
end
$$;

-- Agents that wait in the line of shares, and in which lane of it; up to p_limit.
create function nexus.sharers(p_limit int) returns table (lane smallint, agent_id text)
language plpgsql stable set search_path = pg_catalog, nexus set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  v_from text collate "C";
  v_found int := 0;
begin
  foreach lane in array '{0,1,2}'::smallint[] loop
    v_from := '';
    while v_found < p_limit loop
      select p.agent_id into agent_id from nexus.parked p
      where p.scope = 'share' and p.lane = sharers.lane and p.agent_id >= v_from order by p.agent_id limit 1;
      exit when not found;
      v_found := v_found + 1;
      v_from := agent_id || chr(1);  -- nothing is between the two
      return next;
    end loop;
  end loop;
end
$$;

-- Each item: {run_id, step, attempt, outcome, result | details, error, delay, reply_to, calls}, where outcome is
--   success  publish result (docs/wire.md) and complete the run; saving is what may be kept of the answer
--   failed   fail the run; details is laid over the failure that is published
--   retry    put it back for a later attempt, after delay seconds
--   release  put it back at once; counts no attempt
--   park     put it back until its turn in the line of scope; counts no attempt that called no provider
-- and calls are rows of nexus.attempts, booked whatever becomes of the rest.
-- Returns the runs that were settled; those that are missing had been taken from this worker.
-- (Here and in other functions that begin a transaction plans made while tables are small must do while they grow. jit: what has
-- no index after all would otherwise be compiled for its nominal cost.)
create or replace function nexus.settle(p_worker_id uuid, p_items jsonb[], p_notify boolean default true) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set jit = off as $$
declare
  v_done uuid[];
  v_settled uuid[] := '{}';
  v_outcome text;
  v_runs uuid[];
  v_steps text[];
  v_attempts int[];
  v_items jsonb[];
begin
  perform nexus.book(p_worker_id, p_items);
  for v_outcome, v_runs, v_steps, v_attempts, v_items in
    select i.item ->> 'outcome', array_agg((i.item ->> 'run_id')::uuid), array_agg(i.item ->> 'step'),
           array_agg((i.item ->> 'attempt')::int), array_agg(i.item)
    from unnest(p_items) as i (item) group by 1
    order by i.item ->> 'outcome' = 'park'  -- last: who parks holds flights that others may be ending
  loop
    v_done := array(select nexus.settle_all(v_outcome, p_worker_id, v_runs, v_steps, v_attempts, v_items, p_notify));
    v_settled := v_settled || v_done;
  end loop;
  if cardinality(v_settled) < cardinality(p_items) then
    perform nexus.note_late(p_items, v_settled);
  end if;
  return query select unnest(v_settled);
end
$$;

create or replace function nexus.settle_all(
  p_outcome text, p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_items jsonb[], p_notify boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_done uuid[];
  v_again uuid[];
begin
  if p_outcome = 'success' then
    v_done := array(select pgflow.complete_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select jsonb_build_object('route_llm', (i.item -> 'result') - '{response,message}'::text[])
            from unnest(p_items) with ordinality as i (item, n) order by i.n)));
    v_again := nexus.called_before(p_items);
    perform nexus.publish(
      array_agg(coalesce(i.item ->> 'reply_to', 'ai_results')),
      array_agg(case when i.run_id = any (v_again) then nexus.count_calls(i.item -> 'result', i.run_id)
                     else i.item -> 'result' end), p_notify)
    from unnest(p_runs, p_items) as i (run_id, item) where i.run_id = any (v_done)
    having count(*) > 0;
    if exists (select from unnest(p_items) as i (item) where i.item ? 'saving') then
      perform nexus.save_answers(array(
        select i.item from unnest(p_runs, p_items) as i (run_id, item)
        where i.run_id = any (v_done) and i.item ? 'saving'));
    end if;
  elsif p_outcome = 'failed' then
    v_done := array(select pgflow.fail_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select i.item ->> 'error' from unnest(p_items) with ordinality as i (item, n) order by i.n),
      array(select i.item -> 'details' from unnest(p_items) with ordinality as i (item, n) order by i.n)));
  elsif p_outcome = 'park' then
    v_done := array(select nexus.park(
      p_worker_id, array_agg(i.run_id), array_agg(i.step), array_agg(i.attempt), array_agg(i.item ->> 'scope'),
      array_agg(i.item ->> 'priority'), array_agg(i.item ->> 'agent_id'), array_agg(i.item ->> 'deadline'),
      array_agg(coalesce(jsonb_array_length(i.item -> 'calls') > 0, false)))
      from unnest(p_runs, p_steps, p_attempts, p_items) as i (run_id, step, attempt, item));
  else
    v_done := array(select pgflow.return_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select (i.item ->> 'delay')::double precision from unnest(p_items) with ordinality as i (item, n) order by i.n),
      array(select i.item ->> 'error' from unnest(p_items) with ordinality as i (item, n) order by i.n),
      p_outcome = 'retry'));
    if p_outcome = 'release' then
      perform pg_notify('pgnexus_requests', '');
    end if;
  end if;
  return query select unnest(v_done);
end
$$;

-- track_metrics, in T3: every provider call into the books, also of requests that others have ended meanwhile, and what it
-- is charged to budgets. A call that was taken for lost (`unknown`) gets its real row, and the difference is charged.
create or replace function nexus.book(p_worker_id uuid, p_items jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
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
language sql stable set search_path = pg_catalog, nexus as $$
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
language sql stable set search_path = pg_catalog, nexus as $$
  select count(*), coalesce(sum(a.prompt_tokens), 0), coalesce(sum(a.completion_tokens), 0),
         coalesce(sum(a.cached_tokens), 0), coalesce(sum(a.cache_write_tokens), 0), coalesce(sum(a.reasoning_tokens), 0),
         case when not coalesce(bool_or(a.cost is null and a.prompt_tokens + a.completion_tokens > 0), false) then sum(a.cost) end,
         coalesce(bool_or(a.estimated), false)
  from nexus.attempts a where a.request_id = p_request_id
$$;

-- Of these items, the requests that have more calls in the books than the item tells of: they were taken up before.
create function nexus.called_before(p_items jsonb[]) returns uuid[]
language sql stable set search_path = pg_catalog, nexus as $$
  select array_agg(i.run_id)
  from (select (i.item ->> 'run_id')::uuid as run_id, jsonb_array_length(i.item -> 'calls') as calls
        from unnest(p_items) as i (item)) i
  where (select count(*) from nexus.attempts a where a.request_id = i.run_id) > i.calls
$$;

-- A result with the calls of all the times its request was taken up, where there are more than it tells of.
create or replace function nexus.count_calls(p_message jsonb, p_run_id uuid) returns jsonb
language sql stable set search_path = pg_catalog, nexus as $$
  select case when s.calls <= coalesce((p_message ->> 'attempts')::int, 0) and p_message ? 'usage' then p_message
              when s.calls = 0 then p_message
              else p_message - '{cost,estimated}'::text[] || jsonb_strip_nulls(jsonb_build_object(
                'attempts', s.calls, 'cost', s.cost::text, 'estimated', case when s.estimated then true end,
                'usage', jsonb_build_object(
                  'prompt_tokens', s.prompt_tokens, 'completion_tokens', s.completion_tokens,
                  'total_tokens', s.prompt_tokens + s.completion_tokens, 'cached_tokens', s.cached_tokens,
                  'cache_write_tokens', s.cache_write_tokens, 'reasoning_tokens', s.reasoning_tokens))) end
  from nexus.sum_of_calls(p_run_id) s
$$;

-- Calls of items that could not be settled are in the books all the same: whoever ended their requests did not know them.
create function nexus.note_late(p_items jsonb[], p_settled uuid[]) returns void
language sql set search_path = pg_catalog, nexus as $$
  insert into nexus.late_calls (request_id)
  select (i.item ->> 'run_id')::uuid from unnest(p_items) as i (item)
  where (i.item ->> 'run_id')::uuid <> all (p_settled) and jsonb_array_length(i.item -> 'calls') > 0
$$;

-- Give the stored results of requests that have ended the sum of all their calls, where calls came late; a request that
-- has not ended will be told with them when it does. What somebody else holds is left for the next time, so that this waits
-- for nobody; what never arrives where results are stored is let go after a day. Returns how many were looked at.
create function nexus.amend_results(p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus as $$
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

-- calls: [[request_id, attempt, call, started_at, provider, model, prompt_tokens, completion_tokens, cost, charges], ...], what is
-- reserved for each. Text as it came, for hardly any of them is ever read.
create table nexus.reservations (
  instance_id uuid not null,
  number      bigint not null,
  reserved_at timestamptz not null default clock_timestamp(),
  calls       json not null,
  primary key (instance_id, number)
);

-- Note calls in flight as one row, drop rows whose calls are in the books, and bury those whose requests others have been
-- given. Said twice, it is done once. Nobody waits for the disk: what a crash of the server loses the worker still knows.
create function nexus.reserve(p_instance uuid, p_number bigint, p_calls json, p_done bigint[], p_lost bigint[]) returns void
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set jit = off as $$
declare
  v_charges jsonb[];
begin
  perform set_config('synchronous_commit', 'off', true);
  if cardinality(p_lost) > 0 then  -- before any row: who is burying this instance wants all of them
    perform nexus.lock_burial(p_instance, true);
  end if;
  if p_calls is not null then
    insert into nexus.reservations (instance_id, number, calls) values (p_instance, p_number, p_calls)
    on conflict do nothing;
  end if;
  if cardinality(p_done) > 0 then  -- those that somebody is burying are his
    delete from nexus.reservations r using (
      select o.number from nexus.reservations o
      where o.instance_id = p_instance and o.number = any (p_done) for update skip locked) d
    where r.instance_id = p_instance and r.number = d.number;
  end if;
  if cardinality(p_lost) > 0 then
    v_charges := (select b.charges from nexus.book_unknown(p_instance, p_lost) b);
    if v_charges is not null then
      perform nexus.charge(p_instance, v_charges);
    end if;
  end if;
end
$$;

-- The instances that are no more and have left calls in flight, or, with p_all, anything else. (What they have spent they
-- may leave: it counts all the same.)
create function nexus.gone_instances(p_all boolean) returns setof uuid
language plpgsql stable set search_path = pg_catalog, nexus as $$
begin
  return query
  with recursive reserving as (  -- from one to the next, past the many rows of each
    (select r.instance_id from nexus.reservations r order by r.instance_id limit 1)
    union all
    select (select r.instance_id from nexus.reservations r where r.instance_id > n.instance_id order by r.instance_id limit 1)
    from reserving n where n.instance_id is not null
  ), known as (
    select n.instance_id from reserving n where n.instance_id is not null
    union select h.instance_id from nexus.holdings h where p_all
    union select l.instance_id from nexus.configured_limits l where p_all
  )
  select k.instance_id from known k
  where not exists (select from pgflow.workers w where w.worker_id = k.instance_id and w.stopped_at is null)
  order by 1;
end
$$;

-- Make `unknown` attempts of an instance's calls in flight (of all, or of the rows named) that are not in the books, and
-- take their rows away. Returns how many, and what they are to be charged: what was reserved. Who calls it has the lock.
create function nexus.book_unknown(p_instance uuid, p_numbers bigint[], out calls int, out charges jsonb[])
language plpgsql set search_path = pg_catalog, nexus as $$
begin
  with gone as (
    delete from nexus.reservations r
    where r.instance_id = p_instance and (p_numbers is null or r.number = any (p_numbers))
    returning r.calls
  ), reserved as materialized (
    select (c.call ->> 0)::uuid as request_id, (c.call ->> 1)::int as attempt, (c.call ->> 2)::int as call,
           (c.call ->> 3)::timestamptz as started_at, c.call ->> 4 as provider, c.call ->> 5 as model,
           (c.call ->> 6)::bigint as prompt_tokens, (c.call ->> 7)::bigint as completion_tokens,
           (c.call ->> 8)::numeric as cost, (c.call -> 9)::jsonb as charges
    from gone g cross join lateral json_array_elements(g.calls) as c (call)
  ), booked as (
    insert into nexus.attempts (
      request_id, attempt, call, instance_id, provider, model, complexity, task_type, agent_id, outcome, error, started_at,
      duration_ms, prompt_tokens, completion_tokens, cost, estimated)
    select c.request_id, c.attempt, c.call, p_instance, c.provider, c.model, r.input ->> 'complexity',
           r.input ->> 'task_type', r.input ->> 'agent_id', 'unknown', 'its worker was lost', c.started_at,
           least(greatest(extract(epoch from coalesce(w.last_heartbeat_at, c.started_at) - c.started_at) * 1000, 0), 2147483647)::int,
           c.prompt_tokens, c.completion_tokens, c.cost, true
    from reserved c
    left join pgflow.runs r on r.run_id = c.request_id
    left join pgflow.workers w on w.worker_id = p_instance
    order by c.request_id, c.attempt, c.call  -- as nexus.book, so that nobody waits in a circle
    on conflict do nothing
    returning request_id, attempt, call
  ), late as (
    insert into nexus.late_calls (request_id) select distinct b.request_id from booked b
  )
  select (select count(*) from booked), array_agg(e.item || jsonb_build_object('actual', e.item -> 'reserved'))
  into calls, charges
  from booked b
  join reserved c on c.request_id = b.request_id and c.attempt = b.attempt and c.call = b.call
  cross join lateral jsonb_array_elements(c.charges) as e (item);
end
$$;

create function nexus.lock_burial(p_instance uuid, p_wait boolean) returns boolean
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_key bigint := hashtextextended('nexus.bury ' || p_instance, 0);
begin
  if p_wait then
    perform pg_advisory_xact_lock(v_key);
  end if;
  return p_wait or pg_try_advisory_xact_lock(v_key);
end
$$;

-- The books of the instances that are no more, but for what they are charged, which nexus.end_burial pays after all
-- attempts of the transaction are written. With p_wait only of those with calls in flight, and also of those that somebody
-- else is at; without it of all others.
create function nexus.begin_burial(p_wait boolean) returns jsonb[]
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_instance uuid;
  v_gone jsonb[] := '{}';
begin
  for v_instance in select * from nexus.gone_instances(not p_wait) loop
    if nexus.lock_burial(v_instance, p_wait) then
      v_gone := v_gone || (select jsonb_build_object('instance_id', v_instance, 'calls', b.calls, 'charges', to_jsonb(b.charges))
                           from nexus.book_unknown(v_instance, null) b);
    end if;
  end loop;
  return v_gone;
end
$$;

create function nexus.end_burial(p_gone jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_gone jsonb;
  v_instance uuid;
begin
  foreach v_gone in array p_gone loop
    v_instance := v_gone ->> 'instance_id';
    if v_gone -> 'charges' <> 'null' then
      perform nexus.charge(v_instance, array(select jsonb_array_elements(v_gone -> 'charges')));
    end if;
    perform nexus.release_holdings(v_instance);
  end loop;
end
$$;

-- Bring the books of instances that are no more to their end; any number of workers may do so at once. Returns them, and how
-- many calls each had in flight.
create function nexus.bury() returns table (instance_id uuid, calls int)
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_gone jsonb[] := nexus.begin_burial(false);
begin
  perform nexus.end_burial(v_gone);
  return query select (g.item ->> 'instance_id')::uuid, (g.item ->> 'calls')::int from unnest(v_gone) as g (item);
end
$$;

-- keep_until null: only for requests that were there while it was made.
create table nexus.answers (
  key        bytea primary key,
  answer     jsonb not null,
  made_at    timestamptz not null default clock_timestamp(),
  keep_until timestamptz,
  gone_at    timestamptz not null
);

create index answers_by_end on nexus.answers (gone_at);

-- Who is asking for all: the leader of a single flight. It leads until its run ends, whatever worker it is on.
create table nexus.flights (
  key        bytea primary key,
  request_id uuid not null unique,
  begun_at   timestamptz not null default clock_timestamp()
);
create index flights_by_age on nexus.flights (begun_at);

create function nexus.flight_scope(p_key bytea) returns text
language sql immutable parallel safe as $$
  select 'flight:' || encode(p_key, 'hex')
$$;

-- The flight that a request leads, if any, is over: those who follow may be taken up.
create function nexus.end_flight(p_request_id uuid) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_keys bytea[];
begin
  with ended as (delete from nexus.flights f where f.request_id = p_request_id returning f.key)
  select array_agg(ended.key) into v_keys from ended;
  perform nexus.call_followers(v_keys);
end
$$;

-- What there is for a request: an answer (one that was made before the request was taken up is 'cached', and given where p_kept
-- asks for it; else 'shared'), somebody who is asking for it already ('follow'), or nothing: then it leads the flight that
-- p_flight asks for ('lead') or not ('none'). Who led, and is given an answer that another one made, leads no more. A leader
-- whose run has ended in a way that told nobody is followed by nobody.
create function nexus.look_up(p_request_id uuid, p_key bytea, p_kept boolean, p_flight boolean)
returns table (how text, answer jsonb)
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_leader uuid;
begin
  select case when r.started_at < a.made_at then 'shared' else 'cached' end, a.answer into how, answer
  from nexus.answers a join pgflow.runs r on r.run_id = p_request_id
  where a.key = p_key and (p_kept and a.keep_until > clock_timestamp() or r.started_at < a.made_at);
  if found then
    if p_flight then
      perform nexus.end_flight(p_request_id);
    end if;
  else
    how := 'none';
    if p_flight then
      insert into nexus.flights as f (key, request_id) values (p_key, p_request_id)
      on conflict (key) do update  -- also to read it, whoever wrote it and when
      set request_id = case when exists (select from pgflow.runs r where r.run_id = f.request_id and r.status = 'started')
                            then f.request_id else excluded.request_id end
      returning f.request_id into v_leader;
      how := case when v_leader = p_request_id then 'lead' else 'follow' end;
    end if;
  end if;
  return next;
end
$$;

-- In T3, for items with a `saving` {key, ttl, answer}: keep the answer, for ttl seconds or for those who follow only, and end the flight.
-- Without an answer (the leader failed) the first of the followers to be taken up leads on.
create function nexus.save_answers(p_items jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_keys bytea[];
begin
  insert into nexus.answers as a (key, answer, keep_until, gone_at)
  select distinct on (s.key) s.key, s.answer, clock_timestamp() + make_interval(secs => s.ttl),
         clock_timestamp() + make_interval(secs => greatest(s.ttl, 600))
  from (
    select decode(i.item #>> '{saving,key}', 'hex') as key, i.item #> '{saving,answer}' as answer,
           least((i.item #>> '{saving,ttl}')::double precision, 3e9) as ttl  -- a century: the time it ends can be told
    from unnest(p_items) as i (item)
  ) s
  where s.answer is not null
  order by s.key
  on conflict (key) do update
    set answer = excluded.answer, made_at = excluded.made_at, keep_until = excluded.keep_until, gone_at = excluded.gone_at;
  with ended as (
    delete from nexus.flights f using (
      select g.key from nexus.flights g
      where g.request_id in (select (i.item ->> 'run_id')::uuid from unnest(p_items) as i (item))
      order by g.key for update) e
    where f.key = e.key returning f.key
  )
  select array_agg(ended.key) into v_keys from ended;
  perform nexus.call_followers(v_keys);
end
$$;

-- Those who follow may be taken up.
create function nexus.call_followers(p_keys bytea[]) returns void
language sql set search_path = pg_catalog, nexus as $$
  select nexus.unpark(nexus.flight_scope(k.key)) from unnest(p_keys) as k (key)
$$;

-- A leader whose run ends in any other way than by T3 (cancelled, its last worker lost) hands over.
create function nexus.hand_over() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus as $$
begin
  perform nexus.end_flight(new.run_id);
  return null;
end
$$;

create trigger hand_over
  after update of status on pgflow.runs for each row
  when (new.status = 'failed' and old.status <> 'failed' and new.flow_slug = 'llm_request_workflow')
  execute function nexus.hand_over();

-- Take away answers that nobody will be given any more, and flights whose leader is gone; returns how many answers.
create function nexus.prune_answers(p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set jit = off as $$
declare
  v_now timestamptz := clock_timestamp();  -- called in the query, it would keep the index from being searched by it
  v_count int;
begin
  delete from nexus.answers a where a.key in (
    select b.key from nexus.answers b where b.gone_at < v_now order by b.gone_at limit p_limit for update skip locked);
  get diagnostics v_count = row_count;
  delete from nexus.flights f
  where f.begun_at < v_now - interval '1 hour'
    and not exists (select from pgflow.runs r where r.run_id = f.request_id and r.status = 'started');
  return v_count;
end
$$;

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
language sql stable set search_path = pg_catalog, nexus as $$
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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language sql immutable set search_path = pg_catalog, nexus as $$
  select case when p_rest <= 0 or (p_want ->> 'want')::numeric = 0 then 0
              else least(greatest((p_want ->> 'want')::numeric - (p_want ->> 'waiting')::numeric, p_rest / (16 * p_live)),
                         p_rest / (2 * p_live)) end
$$;

-- A token bucket: it holds a tenth of the minute's amount, one at least, and fills all the time. A call that needs more
-- tokens than there are passes as soon as there are any: the rest is owed, so that no flood of small calls keeps it out.
create function nexus.lease_rate(
  p_want jsonb, p_live int, out granted numeric, out next_in double precision, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus as $$
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
language sql stable set search_path = pg_catalog, nexus as $$
  select case when p_kind like '%\_per\_day' then (p_now at time zone 'UTC')::date
              when p_kind like '%\_per\_month' then date_trunc('month', p_now at time zone 'UTC')::date
              else '-infinity'::date end
$$;

-- Give back what is no longer wanted. When no answer came to an earlier lease (lost), what it granted is undone if it was
-- done, else what it gave back is given back now; both leave its serial, so that this may be said twice.
create function nexus.give_back(p_want jsonb, p_instance uuid, p_serial bigint) returns void
language sql set search_path = pg_catalog, nexus as $$
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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language sql set search_path = pg_catalog, nexus as $$
  select pg_advisory_xact_lock(hashtextextended('nexus.charged', 0))
$$;

-- Pay for calls, in the transaction that books them. Each of p_charges is {scope, kind, period, reserved, actual}; what was
-- set aside counts where nobody knows what a call took.
create function nexus.charge(p_instance uuid, p_charges jsonb[]) returns void
language sql set search_path = pg_catalog, nexus as $$
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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language sql set search_path = pg_catalog, nexus as $$
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
language sql set search_path = pg_catalog, nexus as $$
  insert into nexus.configured_limits (instance_id, scope, kind, amount)
  select p_instance, l.scope, l.kind, l.amount
  from jsonb_to_recordset(p_limits) as l (scope text, kind text, amount numeric)
  on conflict on constraint configured_limits_pkey do update set amount = excluded.amount
$$;

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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language plpgsql set search_path = pg_catalog, nexus as $$
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
language sql set search_path = pg_catalog, nexus as $$
  update nexus.breakers b set probe_until = null, probe_by = null
  where b.provider = p_provider and b.model = p_model and b.probe_by = p_instance
$$;

create function nexus.close_breaker(p_provider text, p_model text) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
begin
  delete from nexus.breakers b where b.provider = p_provider and b.model = p_model;
  if found then
    perform pg_notify('pgnexus_breakers', '');
  end if;
end
$$;

-- Who writes a request's chunks: the claim that began to last. A worker that was given up, or froze, is refused.
create table nexus.streams (
  request_id uuid primary key,
  claim      uuid not null,
  attempt    int not null,
  begun_at   timestamptz not null default clock_timestamp()
);

create index streams_by_age on nexus.streams (begun_at);

-- One row a flush of a stream. Numbers count up from 1 without a gap; a row that says discard makes void what was
-- before it, and only at such a row may numbers jump.
create table nexus.chunks (
  request_id uuid not null,
  number     int not null,
  discard    boolean not null default false,
  text       text not null default '',
  reasoning  text not null default '',
  tool_calls jsonb,
  primary key (request_id, number),
  constraint numbers_count_from_one check (number > 0),
  constraint says_something check (discard <> (text <> '' or reasoning <> '' or tool_calls is not null))
);

-- Store one flush of each of many streams, and tell their readers. p_numbers are null for the first flush of a claim,
-- which is numbered here, and begins with discard when another claim had written before. Said again after a commit
-- cut off half-way it stores nothing twice. Returns each claim's next number; those that are missing are refused.
-- Not waited for until it is on disk: what a crash takes away here is in the stored answer all the same.
create function nexus.store_chunks(
  p_request_ids uuid[], p_claims uuid[], p_attempts int[], p_numbers int[], p_discards boolean[], p_texts text[],
  p_reasonings text[], p_tool_calls jsonb[]
) returns table (claim uuid, next int)
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_held uuid[];
begin
  perform set_config('synchronous_commit', 'off', true);
  v_held := array(
    select i.claim from unnest(p_request_ids, p_claims) as i (request_id, claim)
    where i.claim = (select s.claim from nexus.streams s where s.request_id = i.request_id));
  if cardinality(v_held) < cardinality(p_claims) then
    perform nexus.begin_streams(p_request_ids, p_claims, p_attempts, p_numbers, v_held);
  end if;
  return query
    with held as materialized (
      select i.*
      from unnest(p_request_ids, p_claims, p_numbers, p_discards, p_texts, p_reasonings, p_tool_calls)
        as i (request_id, claim, number, discard, text, reasoning, tool_calls)
      where i.claim = (select s.claim from nexus.streams s where s.request_id = i.request_id)
        and not (i.number is null and i.claim = any (v_held))
    ), flush as materialized (
      select h.claim, h.request_id, n.number, n.discard, h.text, h.reasoning, h.tool_calls,
             h.text <> '' or h.reasoning <> '' or h.tool_calls is not null as says
      from held h cross join lateral nexus.place_chunk(h.request_id, h.number, h.discard) as n (number, discard)
    ), marked as (
      insert into nexus.chunks (request_id, number, discard)
      select f.request_id, f.number, true from flush f where f.discard
      on conflict do nothing
    ), said as (
      insert into nexus.chunks (request_id, number, text, reasoning, tool_calls)
      select f.request_id, f.number + f.discard::int, f.text, f.reasoning, f.tool_calls from flush f where f.says
      on conflict do nothing
    )
    select f.claim, f.number + f.discard::int + f.says::int from flush f
    union all
    select i.claim, (select max(c.number) + 1 from nexus.chunks c where c.request_id = i.request_id)
    from unnest(p_request_ids, p_claims, p_numbers) as i (request_id, claim, number)
    where i.number is null and i.claim = any (v_held);
  perform nexus.notify_chunks(p_request_ids);
end
$$;

-- Let claims have their streams: the first flush of one takes it from every claim that is not of a later attempt; a
-- later flush, whose first one was lost in a crash, only from those of earlier attempts.
create function nexus.begin_streams(
  p_request_ids uuid[], p_claims uuid[], p_attempts int[], p_numbers int[], p_held uuid[]
) returns void
language sql set search_path = pg_catalog, nexus as $$
  insert into nexus.streams as s (request_id, claim, attempt)
  select i.request_id, i.claim, i.attempt
  from unnest(p_request_ids, p_claims, p_attempts, p_numbers) as i (request_id, claim, attempt, number)
  where i.claim <> all (p_held)
    and (i.number is null or not exists (
      select from nexus.streams h where h.request_id = i.request_id and h.attempt >= i.attempt))
  order by i.request_id
  on conflict (request_id) do update set claim = excluded.claim, attempt = excluded.attempt
  where s.attempt <= excluded.attempt
$$;

-- Where a flush goes, and whether it makes void what is there; that is deleted, so that a request that is tried many
-- times keeps one answer's worth. A claim that begins after others leaves room for numbers that a crash may have
-- taken back from them: a reader that saw one of those must not take a new chunk of that number for it.
create function nexus.place_chunk(p_request_id uuid, p_number int, p_discard boolean, out number int, out discard boolean)
language plpgsql set search_path = pg_catalog, nexus as $$
begin
  number := p_number;
  discard := p_discard;
  if p_number is null then
    select max(c.number) + 1000 into number from nexus.chunks c where c.request_id = p_request_id;
    discard := number is not null;
    number := coalesce(number, 1);
  end if;
  if discard then
    delete from nexus.chunks c where c.request_id = p_request_id and c.number < place_chunk.number;
  end if;
end
$$;

create function nexus.notify_chunks(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_ids text;
begin
  -- ids only, and in portions: a payload of 8,000 bytes would abort the transaction
  for v_ids in
    select string_agg(e.id::text, ',')
    from unnest(p_request_ids) with ordinality as e (id, ordinal) group by (e.ordinal - 1) / 200
  loop
    perform pg_notify('pgnexus_chunks', v_ids);
  end loop;
end
$$;

-- Delete the chunks of at most p_limit requests that ended p_ttl ago, or began a day ago; returns how many.
create function nexus.prune_chunks(p_ttl interval, p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_old uuid[];
begin
  v_old := array(
    select s.request_id from nexus.streams s
    where s.begun_at < v_now - least(p_ttl, interval '1 day')
      and (s.begun_at < v_now - interval '1 day' or not exists (
        select from pgflow.runs r
        where r.run_id = s.request_id
          and (r.status = 'started' or coalesce(r.completed_at, r.failed_at) >= v_now - p_ttl)))
    order by s.begun_at limit p_limit
    for update skip locked);
  delete from nexus.chunks c where c.request_id = any (v_old);
  delete from nexus.streams s where s.request_id = any (v_old);
  return cardinality(v_old);
end
$$;

-- Cancel requests on the nexus side: runs that are under way fail as cancelled, requests that still wait are
-- answered as cancelled when they are taken up. Workers hear of it at once.
create or replace function nexus_api.cancel(p_request_ids uuid[]) returns void
language plpgsql security definer set search_path = pg_catalog, nexus_api set enable_seqscan = off set jit = off as $$
declare
  v_ids text;
begin
  perform pgflow.cancel_runs(array(
    select r.run_id from pgflow.runs r
    where r.run_id = any (p_request_ids) and r.flow_slug = 'llm_request_workflow' and r.status = 'started'));
  insert into nexus.cancellations (request_id)
  select i.id from unnest(p_request_ids) as i (id)
  where not exists (select from pgflow.runs r where r.run_id = i.id)
  on conflict do nothing;
  -- those whose message never came
  delete from nexus.cancellations c where c.cancelled_at < clock_timestamp() - interval '30 days';
  for v_ids in
    select string_agg(e.id::text, ',')
    from unnest(p_request_ids) with ordinality as e (id, ordinal) group by (e.ordinal - 1) / 200
  loop
    perform pg_notify('pgnexus_cancel', v_ids);
  end loop;
end
$$;

-- What the nexus side is doing: requests in flight and put back, and of the provider calls that ended in the last
-- p_window: how many a second, how many failed (and how often which provider failed how), and their latency. The moment is
-- a query of its own, or the index of time would not be used.
create or replace function nexus_api.activity(p_lease interval, p_window interval default '5 minutes')
returns table (in_flight bigint, waiting_for_retry bigint, instances int, calls bigint, calls_per_second double precision,
               failed_calls bigint, failures jsonb, p50_ms double precision, p95_ms double precision,
               p99_ms double precision)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select (select count(*) from pgflow.step_tasks t where t.status = 'started' and t.flow_slug = 'llm_request_workflow'),
         (select count(*) from pgflow.step_tasks t where t.not_before < 'infinity' and t.flow_slug = 'llm_request_workflow'),
         nexus_api.live_instances(p_lease), count(*), count(*) / extract(epoch from p_window)::double precision,
         count(*) filter (where a.outcome <> 'success'),
         (select coalesce(jsonb_object_agg(f.name, f.calls), '{}')
          from (select b.provider || ' ' || b.outcome as name, count(*) as calls from nexus.attempts b
                where b.started_at > (select clock_timestamp() - p_window) and b.outcome <> 'success' group by 1) f),
         percentile_cont(0.5) within group (order by a.duration_ms),
         percentile_cont(0.95) within group (order by a.duration_ms),
         percentile_cont(0.99) within group (order by a.duration_ms)
  from nexus.attempts a where a.started_at > (select clock_timestamp() - p_window)
$$;

-- The chunks of each request after a number, in order, at most p_limit of each; place is the request's among those asked.
create function nexus_api.read_streams(p_request_ids uuid[], p_after int[], p_limit int)
returns table (place int, number int, discard boolean, text text, reasoning text, tool_calls jsonb)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
#variable_conflict use_column
begin
  return query
    select i.place::int, c.number, c.discard, c.text, c.reasoning, c.tool_calls
    from unnest(p_request_ids, p_after) with ordinality as i (request_id, after, place)
    cross join lateral (
      select n.* from nexus.chunks n
      where n.request_id = i.request_id and n.number > i.after
      order by n.number limit p_limit
    ) c
    order by i.place, c.number;
end
$$;

-- The same of one request.
create function nexus_api.read_chunks(p_request_id uuid, p_after int, p_limit int)
returns table (number int, discard boolean, text text, reasoning text, tool_calls jsonb)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select s.number, s.discard, s.text, s.reasoning, s.tool_calls
  from nexus_api.read_streams(array[p_request_id], array[p_after], p_limit) s
$$;

-- What the limits and budgets stand at. The limit is the smallest that a live instance's settings name for the scope; an
-- agent without a row of its own has that of agent:*. level is what a rate has left, held what calls under way, and blocks of
-- workers, set aside of calls at once and of budgets.
create function nexus_api.limits()
returns table (scope text, kind text, period date, "limit" numeric, spent numeric, held numeric, level numeric)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  with live as materialized (select nexus.live_instances() as instance_id), configured as (
    select l.scope, l.kind, min(l.amount) as amount
    from nexus.configured_limits l join live on live.instance_id = l.instance_id group by 1, 2
  ), used as (
    select h.scope, h.kind, h.period, 0 as spent, greatest(h.leased - coalesce(c.settled, 0), 0) as held, null::numeric as level
    from nexus.holdings h left join nexus.charged c using (scope, kind, period, instance_id)
    where isfinite(h.period) or h.instance_id in (select live.instance_id from live)
    union all
    select c.scope, c.kind, c.period, c.spent, 0, null from nexus.charged c
    union all
    select b.scope, b.kind, null, null, null,
           case when l.amount is null then b.level
                else least(greatest(l.amount / 10, 1),
                           b.level + extract(epoch from clock_timestamp() - b.refilled_at) * l.amount / 60) end
    from nexus.buckets b
    left join lateral (
      select f.amount from configured f
      where f.kind = b.kind and (f.scope = b.scope or (f.scope = 'agent:*' and b.scope like 'agent:%'))
      order by f.scope = b.scope desc limit 1
    ) l on true
  ), now_used as (
    select u.scope, u.kind, nullif(u.period, '-infinity') as period, sum(u.spent) as spent, sum(u.held) as held, min(u.level) as level
    from used u
    where u.period is null or u.period = nexus.period_of(u.kind, clock_timestamp())
    group by 1, 2, 3
  ), shown as (
    select n.* from now_used n
    union all
    select f.scope, f.kind, case when f.kind like '%\_per\_day' or f.kind like '%\_per\_month'
                                 then nexus.period_of(f.kind, clock_timestamp()) end,
           case when f.kind not like '%\_per\_minute' then 0 end, case when f.kind not like '%\_per\_minute' then 0 end,
           case when f.kind like '%\_per\_minute' then greatest(f.amount / 10, 1) end
    from configured f
    where f.scope <> 'agent:*' and not exists (select from now_used n where n.scope = f.scope and n.kind = f.kind)
  )
  select s.scope, s.kind, s.period, l.amount, s.spent, s.held, s.level
  from shown s
  left join lateral (
    select f.amount from configured f
    where f.kind = s.kind and (f.scope = s.scope or (f.scope = 'agent:*' and s.scope like 'agent:%'))
    order by f.scope = s.scope desc limit 1
  ) l on true
  order by 1, 2, 3
$$;

-- Give a request's stored result the sum of all its calls. True when that is done, or when there is no such row; false while
-- the row has no end yet, or somebody else is at it: it waits for nobody.
create function nexus_api.amend_result(p_request_id uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, nexus_api as $$
begin
  perform from pgnexus.job_results j where j.request_id = p_request_id and j.finished_at is not null for update skip locked;
  if not found then
    return not exists (select from pgnexus.job_results j where j.request_id = p_request_id);
  end if;
  update pgnexus.job_results j
  set prompt_tokens = s.prompt_tokens, completion_tokens = s.completion_tokens,
      total_tokens = s.prompt_tokens + s.completion_tokens, cached_tokens = s.cached_tokens, cost = s.cost,
      attempts = s.calls, reasoning_tokens = nullif(s.reasoning_tokens, 0),
      cache_write_tokens = nullif(s.cache_write_tokens, 0),
      output = case when s.estimated then coalesce(j.output, '{}') || '{"estimated": true}' else j.output - 'estimated' end
  from nexus.sum_of_calls(p_request_id) s
  where j.request_id = p_request_id and s.calls > 0;
  return true;
end
$$;

-- Calls, tokens and cost of the calls that began in [p_since, p_until), by any of the names below; what is not asked for is
-- null in every row. cost is the sum of the known ones; estimated_cost is the part of it that no vendor has told.
create function nexus_api.costs(
  p_since timestamptz, p_until timestamptz, p_by text[], p_agent_id text default null,
  out model text, out provider text, out agent text, out task_type text, out complexity text, out day date,
  out hour timestamptz, out outcome text, out calls bigint, out prompt_tokens bigint, out completion_tokens bigint,
  out cached_tokens bigint, out cache_write_tokens bigint, out reasoning_tokens bigint, out cost numeric,
  out estimated_cost numeric, out calls_of_unknown_cost bigint, out estimated_calls bigint)
returns setof record
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
#variable_conflict use_column
declare
  v_unknown text := (select b.name from unnest(p_by) as b (name)
                     where b.name <> all ('{model,provider,agent,task_type,complexity,day,hour,outcome}') limit 1);
begin
  if v_unknown is not null then
    raise exception using errcode = 'PN002',
      message = format('costs: there is no "%s"; use model, provider, agent, task_type, complexity, day, hour or outcome', v_unknown);
  end if;
  return query
  select case when 'model' = any (p_by) then a.model end,
         case when 'provider' = any (p_by) then a.provider end,
         case when 'agent' = any (p_by) then a.agent_id end,
         case when 'task_type' = any (p_by) then a.task_type end,
         case when 'complexity' = any (p_by) then a.complexity end,
         case when 'day' = any (p_by) then (a.started_at at time zone 'UTC')::date end,
         case when 'hour' = any (p_by) then date_trunc('hour', a.started_at, 'UTC') end,
         case when 'outcome' = any (p_by) then a.outcome end,
         count(*), sum(a.prompt_tokens)::bigint, sum(a.completion_tokens)::bigint, sum(a.cached_tokens)::bigint,
         sum(a.cache_write_tokens)::bigint, sum(a.reasoning_tokens)::bigint, sum(a.cost),
         sum(a.cost) filter (where a.estimated),
         count(*) filter (where a.cost is null and (a.outcome = 'success' or a.prompt_tokens + a.completion_tokens > 0)),
         count(*) filter (where a.estimated)
  from nexus.attempts a
  where (p_since is null or a.started_at >= p_since) and (p_until is null or a.started_at < p_until)
    and (p_agent_id is null or a.agent_id = p_agent_id)
  group by 1, 2, 3, 4, 5, 6, 7, 8;
end
$$;

-- How much lies on every queue. Past 10,000 messages the depth is the range of their numbers, which is what it is on a queue
-- that is emptied from its front, and ready what it was counted to.
create function nexus_api.watch_queues()
returns table (queue text, depth bigint, ready bigint, oldest_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
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
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
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
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
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
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
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
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
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
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select coalesce(sum(a.cost), 0), coalesce(sum(a.prompt_tokens + a.completion_tokens), 0)::bigint,
         count(*) filter (where a.cost is null and a.prompt_tokens + a.completion_tokens > 0)
  from nexus.attempts a where a.started_at >= p_since
$$;

-- All that is to be seen now. p_lease is for instances that told no lease.
create function nexus_api.watch(p_lease interval, p_window interval) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
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

-- The breakers that are open, or wait for a probe (then open_for is 0), for whoever watches.
create function nexus_api.breakers()
returns table (provider text, model text, reason text, opened_at timestamptz, open_for double precision, times int)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select b.provider, b.model, b.reason, b.opened_at,
         greatest(0, extract(epoch from b.open_until - clock_timestamp()))::double precision, b.times
  from nexus.breakers b
  where b.reason = 'failures' or b.open_until > clock_timestamp()
  order by 1, 2
$$;

-- How the models did in the last seconds, by the books: the median of their answers, and the share of calls that were
-- answered, without those whose outcome says nothing of the vendor; beside them the breakers that are open.
create function nexus_api.standings(p_seconds double precision, p_not_the_vendors text[])
returns table (provider text, model text, calls bigint, latency_ms double precision, success_rate double precision,
               open_for double precision)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  with lately as (
    select a.provider, a.model, count(*) as calls,
           percentile_cont(0.5) within group (order by a.duration_ms) filter (where a.outcome = 'success') as latency_ms,
           (count(*) filter (where a.outcome = 'success'))::double precision
             / nullif(count(*) filter (where a.outcome <> all (p_not_the_vendors)), 0) as success_rate
    from nexus.attempts a
    where a.started_at > (select clock_timestamp() - make_interval(secs => p_seconds))  -- asked once, so that the index is used
    group by a.provider, a.model
  )
  select coalesce(l.provider, b.provider), coalesce(l.model, b.model), coalesce(l.calls, 0), l.latency_ms,
         l.success_rate, nullif(b.open_for, 0)
  from lately l full join nexus_api.breakers() b on b.provider = l.provider and b.model = l.model
$$;
