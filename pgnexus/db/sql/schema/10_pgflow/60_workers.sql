-- Instances and their signs of life. A task's lease is its worker's: one row renewed every few seconds for all
-- the tasks a process runs.

-- A sign of life; registers the worker when it is new, and revives one that had been given up. Returns whether
-- it had been given up: its tasks have been handed to others, and whatever it completes of them is refused.
create or replace function pgflow.heartbeat(
  p_worker_id uuid, p_queue_name text, p_function_name text, p_lease interval default null
) returns boolean
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_stopped_at timestamptz;
begin
  select w.stopped_at into v_stopped_at from pgflow.workers w where w.worker_id = p_worker_id for update;
  insert into pgflow.workers as w (worker_id, queue_name, function_name, lease)
  values (p_worker_id, p_queue_name, p_function_name, p_lease)
  on conflict on constraint workers_pkey do update
  set last_heartbeat_at = clock_timestamp(), stopped_at = null, lease = p_lease;
  return v_stopped_at is not null;
end
$$;

create or replace function pgflow.mark_worker_stopped(worker_id uuid) returns void
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
  update pgflow.workers w set stopped_at = clock_timestamp() where w.worker_id = mark_worker_stopped.worker_id
$$;

-- Workers that gave no sign of life for as long as their own lease are taken for dead. Those that told no lease are judged
-- by their tasks' time alone, see requeue_stalled_tasks. After a restart of the server everybody is granted one lease to
-- come back.
create or replace function pgflow.bury_workers() returns void
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
  update pgflow.workers w set stopped_at = clock_timestamp()
  where w.worker_id in (
    select d.worker_id from pgflow.workers d
    where d.stopped_at is null and d.last_heartbeat_at < clock_timestamp() - d.lease
      and pg_postmaster_start_time() < clock_timestamp() - d.lease
    for update skip locked)
$$;

-- Each task that ended is a dead entry in the index of started ones until the next vacuum. A plain scan of the index marks
-- what it found dead, so that the next one passes it over; a bitmap scan, which the planner likes better, would walk past
-- all of them each time. So neither of the two functions below may use one.

-- Give back the tasks of dead workers. An attempt was spent. A task that has none left, or that lost its fifth worker,
-- fails as its step's when_exhausted says: it may be what kills them.
create or replace function pgflow.recover_tasks()
returns table (flow_slug text, run_id uuid, step_slug text, task_index int, exhausted boolean)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_back pgflow.task_key[];
  v_lost pgflow.task_key[];
  v_attempts int[];
begin
  perform pgflow.bury_workers();
  with stranded as (
    select t.run_id, t.step_slug, t.task_index, t.attempts_count,
           t.requeued_count >= 4 or t.attempts_count >= coalesce(s.opt_max_attempts, f.opt_max_attempts) or r.status <> 'started' as exhausted
    from pgflow.step_tasks t
    join pgflow.workers w on w.worker_id = t.last_worker_id
    join pgflow.runs r on r.run_id = t.run_id
    join pgflow.steps s on s.flow_slug = t.flow_slug and s.step_slug = t.step_slug
    join pgflow.flows f on f.flow_slug = t.flow_slug
    where t.status = 'started' and w.stopped_at is not null
    order by t.run_id, t.step_slug, t.task_index limit 1000
    for update of t skip locked
  ), moved as (
    update pgflow.step_tasks t
    set status = case when d.exhausted then t.status else 'queued' end,
        started_at = case when d.exhausted then t.started_at end,
        error_message = 'its worker was lost in attempt ' || t.attempts_count,
        requeued_count = t.requeued_count + 1, last_requeued_at = clock_timestamp()
    from stranded d
    where t.run_id = d.run_id and t.step_slug = d.step_slug and t.task_index = d.task_index
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task, t.attempts_count, d.exhausted
  )
  select array_agg(m.task) filter (where not m.exhausted), array_agg(m.task) filter (where m.exhausted),
         array_agg(m.attempts_count) filter (where m.exhausted)
  into v_back, v_lost, v_attempts from moved m;
  perform pgflow.tell_states(array(select distinct k.run_id from unnest(v_lost) k));
  -- in the order of locks, what both of the following hold
  perform pgflow.hold_steps(v_lost);
  perform pgflow.hold_runs(array(select distinct k.run_id from unnest(v_back || v_lost) k), v_lost is not null);
  v_back := pgflow.keep_open(v_back);
  if v_back is not null then
    perform pgflow.queue_again(v_back, array_fill(0::double precision, array[cardinality(v_back)]));
  end if;
  perform pgflow.fail_lost(v_lost, v_attempts);
  return query select k.flow_slug, k.run_id, k.step_slug, k.task_index, false from unnest(v_back) k
               union all select k.flow_slug, k.run_id, k.step_slug, k.task_index, true from unnest(v_lost) k;
end
$$;

create or replace function pgflow.fail_lost(p_tasks pgflow.task_key[], p_attempts int[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  if p_tasks is null then
    return;
  end if;
  perform pgflow.fail_tasks(
    null, array_agg(k.run_id), array_agg(k.step_slug), array_agg(k.task_index), array_agg(a.attempt),
    array_agg('its worker was lost in attempt ' || a.attempt), array_agg(true), array_agg(null::double precision))
  from unnest(p_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
  join unnest(p_attempts) with ordinality as a (attempt, n) on a.n = k.n;
  perform pgflow.void_started(k.run_id, k.step_slug, k.task_index, 'its run had ended') from unnest(p_tasks) k;
end
$$;

-- Move tasks whose time has come onto their flows' queues; tells how many, and the seconds until the next one (null if
-- there is none).
create or replace function pgflow.send_due_tasks(p_limit int default 1000) returns table (sent int, next_in double precision)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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

-- By this name processes of 0.1 call it, which may still run.
create or replace function pgflow.send_due(p_flow_slug text, p_limit int default 1000) returns table (sent int, next_in double precision)
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
  select d.sent, d.next_in from pgflow.send_due_tasks(p_limit) d
$$;

-- By time alone, for workers that keep no lease here: tasks that run for longer than their timeout and 30 seconds go
-- back, three times at most; then their message is archived and they fail. Returns how many went back.
create or replace function pgflow.requeue_stalled_tasks() returns int
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_back pgflow.task_key[];
  v_lost pgflow.task_key[];
  v_attempts int[];
begin
  with stalled as (
    select t.run_id, t.step_slug, t.task_index, t.requeued_count >= 3 as exhausted
    from pgflow.step_tasks t
    join pgflow.runs r on r.run_id = t.run_id and r.status = 'started'
    join pgflow.steps s on s.flow_slug = t.flow_slug and s.step_slug = t.step_slug
    join pgflow.flows f on f.flow_slug = t.flow_slug
    left join pgflow.workers w on w.worker_id = t.last_worker_id
    where t.status = 'started' and t.deferred_until is null and t.permanently_stalled_at is null
      and t.started_at < clock_timestamp() - make_interval(secs => coalesce(s.opt_timeout, f.opt_timeout) + 30)
      and not coalesce(w.stopped_at is null and w.last_heartbeat_at > clock_timestamp() - w.lease, false)
    order by t.run_id, t.step_slug, t.task_index
    for update of t skip locked
  ), moved as (
    update pgflow.step_tasks t
    set status = case when d.exhausted then t.status else 'queued' end, started_at = case when d.exhausted then t.started_at end,
        requeued_count = t.requeued_count + case when d.exhausted then 0 else 1 end,
        last_requeued_at = case when d.exhausted then t.last_requeued_at else clock_timestamp() end,
        permanently_stalled_at = case when d.exhausted then clock_timestamp() end
    from stalled d where t.run_id = d.run_id and t.step_slug = d.step_slug and t.task_index = d.task_index
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task, t.attempts_count, d.exhausted
  )
  select array_agg(m.task) filter (where not m.exhausted), array_agg(m.task) filter (where m.exhausted),
         array_agg(m.attempts_count) filter (where m.exhausted)
  into v_back, v_lost, v_attempts from moved m;
  perform pgflow.tell_states(array(select distinct k.run_id from unnest(v_lost) k));
  -- in the order of locks, what both of the following hold
  perform pgflow.hold_steps(v_lost);
  perform pgflow.hold_runs(array(select distinct k.run_id from unnest(v_back || v_lost) k), v_lost is not null);
  v_back := pgflow.keep_open(v_back);
  if v_back is not null then
    perform pgflow.queue_again(v_back, array_fill(0::double precision, array[cardinality(v_back)]));
  end if;
  if v_lost is not null then
    perform pgflow.fail_tasks(
      null, array_agg(k.run_id), array_agg(k.step_slug), array_agg(k.task_index), array_agg(a.attempt),
      array_agg('it stalled once more after it was requeued three times'::text), array_agg(true), array_agg(null::double precision))
    from unnest(v_lost) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
    join unnest(v_attempts) with ordinality as a (attempt, n) on a.n = k.n;
  end if;
  return coalesce(cardinality(v_back), 0);
end
$$;
