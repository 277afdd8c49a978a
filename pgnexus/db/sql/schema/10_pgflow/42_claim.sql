-- Claiming tasks: by the contract, message by message with a visibility timeout; by ours in batches, where the message
-- is gone and the lease is the worker's sign of life.

-- Claimed tasks with all that a handler wants to know.
create or replace function pgflow.describe_tasks(p_tasks pgflow.task_key[]) returns setof pgflow.claimed_task
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return query
    with named as materialized (
      select t.flow_slug, t.run_id, t.step_slug, t.task_index, t.attempts_count, t.input
      from unnest(p_tasks) k
      join pgflow.step_tasks t on t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index
    )
    select 'claimed', t.flow_slug, t.run_id, t.step_slug, t.task_index, t.attempts_count,
           case when s.step_type <> 'map' then
                  case when s.deps_count = 0 then '{}' else pgflow.dependency_outputs(t.flow_slug, t.run_id, t.step_slug) end
                else coalesce(t.input, pgflow.parent_output(t.flow_slug, t.run_id, t.step_slug, t.task_index)) end,
           case when s.step_type <> 'map' and s.deps_count = 0 then r.input end,
           coalesce(s.opt_timeout, f.opt_timeout)::double precision
    from named t
    join pgflow.runs r on r.run_id = t.run_id
    join pgflow.steps s on s.flow_slug = t.flow_slug and s.step_slug = t.step_slug
    join pgflow.flows f on f.flow_slug = t.flow_slug;
end
$$;

-- What the task of the same index of the only parent, a map, came to.
create or replace function pgflow.parent_output(p_flow_slug text, p_run_id uuid, p_step_slug text, p_task_index int) returns jsonb
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return (select coalesce(t.output, 'null') from pgflow.deps d
          join pgflow.step_tasks t on t.run_id = p_run_id and t.step_slug = d.dep_slug and t.task_index = p_task_index
          where d.flow_slug = p_flow_slug and d.step_slug = p_step_slug);
end
$$;

-- Set when messages become visible, each by its own offset in seconds from now; returns those that were there.
create or replace function pgflow.set_vt_batch(queue_name text, msg_ids bigint[], vt_offsets int[])
returns table (msg_id bigint, read_ct int, enqueued_at timestamptz, vt timestamptz, message jsonb, headers jsonb)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  if cardinality(msg_ids) is distinct from cardinality(vt_offsets) then
    raise exception 'msg_ids length (%) must equal vt_offsets length (%)',
      coalesce(cardinality(msg_ids), 0), coalesce(cardinality(vt_offsets), 0);
  end if;
  return query execute format(
    'update pgmq.%I q set vt = clock_timestamp() + make_interval(secs => i.vt_offset)
     from unnest($1, $2) as i (msg_id, vt_offset) where q.msg_id = i.msg_id
     returning q.msg_id, q.read_ct, q.enqueued_at, q.vt, q.message, q.headers',
    pgmq.format_table_name(set_vt_batch.queue_name, 'q'))
  using msg_ids, vt_offsets;
end
$$;

-- The tasks that messages on a flow's queue stand for. What is no message of a task is put aside.
create or replace function pgflow.tasks_of_messages(p_flow_slug text, p_msg_ids bigint[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_queue text := pgflow.queue_of(p_flow_slug);
  v_tasks pgflow.task_key[];
  v_foreign bigint[];
begin
  if v_queue is null then
    return null;
  end if;
  execute format(
    'select array_agg(row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key
                      order by t.run_id, t.step_slug, t.task_index) filter (where t.message_id = q.msg_id and t.flow_slug = $2),
            array_agg(q.msg_id) filter (where pgflow.message_run_id(q.message) is null)
     from pgmq.%I q
     left join pgflow.step_tasks t on t.run_id = pgflow.message_run_id(q.message) and t.step_slug = q.message ->> ''step_slug''
       and t.task_index = pgflow.message_task_index(q.message)
     where q.msg_id = any ($1)',
    pgmq.format_table_name(v_queue, 'q'))
  into v_tasks, v_foreign using p_msg_ids, p_flow_slug;
  perform pgflow.archive_foreign(v_queue, v_foreign) where v_foreign is not null;
  return v_tasks;
end
$$;

-- Claim the tasks of messages that the caller has read. It waits for no run or task, since its transaction may hold those
-- messages: where somebody holds the run alone at this moment, the message is visible again at once.
create or replace function pgflow.start_tasks(flow_slug text, msg_ids bigint[], worker_id uuid)
returns setof pgflow.step_task_record
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  v_named pgflow.task_key[] := pgflow.tasks_of_messages(start_tasks.flow_slug, msg_ids);
  v_runs uuid[];
  v_live uuid[];
  v_started pgflow.task_key[];
  v_seconds int[];
begin
  if not exists (select from pgflow.workers w where w.worker_id = start_tasks.worker_id) then
    raise exception using errcode = 'foreign_key_violation',
      message = format('there is no worker %s: register it with an insert into pgflow.workers', start_tasks.worker_id);
  elsif v_named is null then
    return;
  end if;
  select array_agg(h.run_id), array_agg(h.run_id) filter (where h.status = 'started') into v_runs, v_live
  from (select r.run_id, r.status from pgflow.runs r
        where r.run_id = any (array(select distinct k.run_id from unnest(v_named) k)) for share skip locked) h;
  perform pgflow.set_vt_batch(pgflow.queue_of(start_tasks.flow_slug), array_agg(k.message_id), array_agg(0))
  from unnest(v_named) k where k.run_id <> all (coalesce(v_runs, '{}')) having count(*) > 0;
  with held as materialized (
    select k.* from unnest(v_named) k cross join lateral (
      select from pgflow.step_tasks t
      where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index and t.status = 'queued'
      for no key update skip locked) t
    where k.run_id = any (v_live)
  ), free as materialized (
    select k.*, coalesce(s.opt_timeout, f.opt_timeout) as timeout from held k
    join pgflow.steps s on s.flow_slug = k.flow_slug and s.step_slug = k.step_slug
    join pgflow.flows f on f.flow_slug = k.flow_slug and f.paused_at is null
    where (select st.status from pgflow.step_states st where st.run_id = k.run_id and st.step_slug = k.step_slug) = 'started'
  ), started as (
    update pgflow.step_tasks t
    set status = 'started', attempts_count = t.attempts_count + 1, started_at = now(), last_worker_id = start_tasks.worker_id
    from free k where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task, k.timeout
  )
  select array_agg(s.task), array_agg(s.timeout + 2) into v_started, v_seconds from started s;
  if v_started is not null then
    perform pgflow.set_vt_batch(
      pgflow.queue_of(start_tasks.flow_slug), array(select k.message_id from unnest(v_started) k), v_seconds);
    return query
      select d.flow_slug, d.run_id, d.step_slug, d.input, k.message_id, d.task_index, d.flow_input
      from pgflow.describe_tasks(v_started) d
      join unnest(v_started) k on k.run_id = d.run_id and k.step_slug = d.step_slug and k.task_index = d.task_index;
  end if;
end
$$;

-- Deprecated in the contract: read the queue, then call start_tasks.
create or replace function pgflow.poll_for_tasks(
  queue_name text, vt int, qty int, max_poll_seconds int default 5, poll_interval_ms int default 100
) returns setof pgflow.step_task_record
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
  select null::pgflow.step_task_record where false
$$;

-- Claim up to p_limit tasks from queues, in their order. Their messages are deleted at once. p_handlers: the actions this
-- worker has, for flows that were built at run time; a task of another action is left for others.
create or replace function pgflow.claim_tasks(p_queues text[], p_worker_id uuid, p_limit int, p_handlers text[] default null)
returns setof pgflow.claimed_task
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
  v_queue text;
  v_left int := p_limit;
  v_ids bigint[];
  v_messages jsonb[];
  v_claimed pgflow.task_key[];
begin
  foreach v_queue in array p_queues loop
    exit when v_left <= 0;
    continue when exists (select from pgflow.flows f where f.queue_name = v_queue and f.paused_at is not null and v_queue <> 'pgflow_built');
    execute format(
      'select array_agg(m.msg_id), array_agg(m.message) from (
         select q.msg_id, q.message from pgmq.%I q
         where q.vt <= clock_timestamp() %s order by q.msg_id limit $1 for update skip locked) m',
      pgmq.format_table_name(v_queue, 'q'),
      -- built flows of all workers share a queue: who has not the action does not touch the message
      case when v_queue = 'pgflow_built' then
        'and not exists (select from pgflow.steps s where s.flow_slug = q.message ->> ''flow_slug''
           and s.step_slug = q.message ->> ''step_slug'' and s.handler <> all (coalesce($2, ''{}'')))' end)
    into v_ids, v_messages using v_left, p_handlers;
    continue when v_ids is null;
    v_claimed := pgflow.claim_messages(v_queue, v_ids, v_messages, p_worker_id, p_handlers);
    if v_claimed is not null then
      v_left := v_left - cardinality(v_claimed);
      return query select d.* from pgflow.describe_tasks(v_claimed) d;
    end if;
  end loop;
end
$$;

-- Claim the tasks of messages that are held. The runs are held, too, for as long as this takes: none of them fails
-- meanwhile and leaves a claimed task behind.
create or replace function pgflow.claim_messages(
  p_queue text, p_ids bigint[], p_messages jsonb[], p_worker_id uuid, p_handlers text[]
) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_runs uuid[];
  v_live uuid[];
  v_claimed pgflow.task_key[];
begin
  select array_agg(h.run_id), array_agg(h.run_id) filter (where h.status = 'started') into v_runs, v_live
  from (select r.run_id, r.status from pgflow.runs r
        where r.run_id = any (array(select distinct pgflow.message_run_id(m) from unnest(p_messages) m)) for share skip locked) h;
  with live as materialized (
    select m.* from pgflow.read_messages(p_ids, p_messages) m where m.run_id = any (v_live)
  ), held as materialized (
    select t.flow_slug, m.run_id, m.step_slug, m.task_index, m.message_id as id
    from live m cross join lateral (
      select t.flow_slug from pgflow.step_tasks t
      where t.run_id = m.run_id and t.step_slug = m.step_slug and t.task_index = m.task_index and t.status = 'queued'
        and t.not_before is null for update skip locked) t
  ), free as materialized (
    select h.* from held h
    join pgflow.steps s on s.flow_slug = h.flow_slug and s.step_slug = h.step_slug and (s.handler is null or s.handler = any (p_handlers))
    join pgflow.flows f on f.flow_slug = h.flow_slug and f.paused_at is null
    where (select st.status from pgflow.step_states st where st.run_id = h.run_id and st.step_slug = h.step_slug) = 'started'
      and coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) = p_queue
  ), claimed as (
    update pgflow.step_tasks t
    set status = 'started', attempts_count = t.attempts_count + 1, started_at = now(), last_worker_id = p_worker_id, message_id = null
    from free n where t.run_id = n.run_id and t.step_slug = n.step_slug and t.task_index = n.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, n.id
  )
  select array_agg(row(c.*)::pgflow.task_key) into v_claimed from claimed c;
  perform pgmq.delete(p_queue, array(select k.message_id from unnest(v_claimed) k));
  if cardinality(v_claimed) is distinct from cardinality(p_ids) then
    perform pgflow.leave_messages(p_queue, p_ids, p_messages, v_runs, v_claimed);
  end if;
  return (select array_agg(row(k.flow_slug, k.run_id, k.step_slug, k.task_index, null)::pgflow.task_key) from unnest(v_claimed) k);
end
$$;

create or replace function pgflow.message_run_id(p_message jsonb) returns uuid
language sql immutable parallel safe as $$
  select case when p_message ->> 'run_id' ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
              then (p_message ->> 'run_id')::uuid end
$$;

create or replace function pgflow.message_task_index(p_message jsonb) returns int
language sql immutable parallel safe as $$
  select case when p_message ->> 'task_index' ~ '^[0-9]{1,9}$' then (p_message ->> 'task_index')::int end
$$;

-- The tasks that messages name; run_id is null where a message names none.
create or replace function pgflow.read_messages(p_ids bigint[], p_messages jsonb[]) returns setof pgflow.task_key
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select i.message ->> 'flow_slug', pgflow.message_run_id(i.message), i.message ->> 'step_slug',
         coalesce(pgflow.message_task_index(i.message), 0), i.id
  from unnest(p_ids, p_messages) as i (id, message)
$$;

-- Messages that were held and stand for no claimed task. What is no message of a task of this queue goes to the archive with the reason;
-- those of tasks that wait for another worker or for a paused flow hide for a moment; those of tasks or runs that somebody
-- else holds stay, and workers look again; all others are of tasks that ended, and go.
create or replace function pgflow.leave_messages(
  p_queue text, p_ids bigint[], p_messages jsonb[], p_runs uuid[], p_claimed pgflow.task_key[]
) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_foreign bigint[];
  v_astray bigint[];
  v_hidden bigint[];
  v_busy bigint[];
begin
  select array_agg(l.id) filter (where l.run_id is null),
         array_agg(l.id) filter (where l.is_astray),
         array_agg(l.id) filter (where not l.is_astray and l.waits and not l.is_mine),
         array_agg(l.id) filter (where not l.is_astray and (l.is_held or l.waits and l.is_mine))
  into v_foreign, v_astray, v_hidden, v_busy
  from (
    select i.message_id as id, i.run_id, t.status = 'queued' and t.not_before is null and r.status = 'started' as waits,
           s.handler is null and f.paused_at is null as is_mine,
           r.run_id is not null and r.run_id <> all (coalesce(p_runs, '{}')) as is_held,
           coalesce(pgflow.queue_of(r.flow_slug) <> p_queue, false) as is_astray
    from (select m.* from pgflow.read_messages(p_ids, p_messages) m
          where m.message_id not in (select k.message_id from unnest(p_claimed) k) offset 0) i
    left join pgflow.runs r on r.run_id = i.run_id
    left join pgflow.step_tasks t on t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
    left join pgflow.steps s on s.flow_slug = t.flow_slug and s.step_slug = t.step_slug
    left join pgflow.flows f on f.flow_slug = t.flow_slug
  ) l;
  perform pgflow.archive_foreign(p_queue, v_foreign) where v_foreign is not null;
  perform pgflow.archive_foreign(p_queue, v_astray, 'its task is of another flow, which has a queue of its own') where v_astray is not null;
  perform pgmq.set_vt(p_queue, v_hidden, 2) where v_hidden is not null;
  perform pg_notify('pgflow_tasks', '') where v_busy is not null;
  perform pgmq.delete(p_queue, array(
    select i.id from unnest(p_ids) as i (id)
    where i.id <> all (coalesce(v_foreign, '{}') || coalesce(v_astray, '{}') || coalesce(v_hidden, '{}') || coalesce(v_busy, '{}'))
      and i.id not in (select k.message_id from unnest(p_claimed) k)));
end
$$;

create or replace function pgflow.archive_foreign(
  p_queue text, p_ids bigint[], p_reason text default 'no message of a task: needs run_id (a UUID), step_slug and task_index'
) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  perform pgmq.archive(p_queue, p_ids);
  execute format('update pgmq.%I set headers = coalesce(headers, ''{}'') || $2 where msg_id = any ($1)', pgmq.format_table_name(p_queue, 'a'))
  using p_ids, jsonb_build_object('reason', p_reason);
end
$$;
