-- schema/10_pgflow/10_tables.sql

-- The workflow engine's tables. Names, columns and constraints follow pgflow's public contract; what is ours
-- beyond it: step_tasks.not_before, runs.cancelled_at.

create schema pgflow;

create function pgflow.is_valid_slug(slug text) returns boolean
language sql immutable parallel safe as $$
  select slug is not null and slug <> 'run' and length(slug) <= 128 and slug ~ '^[a-zA-Z_][a-zA-Z0-9_]*$'
$$;

create table pgflow.flows (
  flow_slug        text primary key,
  opt_max_attempts int not null default 3,
  opt_base_delay   int not null default 1,
  opt_timeout      int not null default 60,
  created_at       timestamptz not null default now(),
  constraint slug_is_valid check (pgflow.is_valid_slug(flow_slug)),
  constraint opt_max_attempts_is_nonnegative check (opt_max_attempts >= 0),
  constraint opt_base_delay_is_nonnegative check (opt_base_delay >= 0),
  constraint opt_timeout_is_positive check (opt_timeout > 0)
);

create table pgflow.steps (
  flow_slug               text not null,
  step_slug               text not null,
  step_type               text not null default 'single',
  step_index              int not null default 0,
  deps_count              int not null default 0,
  opt_max_attempts        int,
  opt_base_delay          int,
  opt_timeout             int,
  opt_start_delay         int,
  required_input_pattern  jsonb,
  forbidden_input_pattern jsonb,
  when_unmet              text not null default 'skip',
  when_exhausted          text not null default 'fail',
  created_at              timestamptz not null default now(),
  primary key (flow_slug, step_slug),
  constraint steps_flow_slug_fkey foreign key (flow_slug) references pgflow.flows (flow_slug),
  constraint steps_flow_slug_step_index_key unique (flow_slug, step_index),
  constraint steps_step_slug_check check (pgflow.is_valid_slug(step_slug)),
  constraint steps_step_type_check check (step_type in ('single', 'map')),
  constraint deps_count_is_nonnegative check (deps_count >= 0),
  constraint opt_max_attempts_is_nonnegative check (opt_max_attempts is null or opt_max_attempts >= 0),
  constraint opt_base_delay_is_nonnegative check (opt_base_delay is null or opt_base_delay >= 0),
  constraint opt_timeout_is_positive check (opt_timeout is null or opt_timeout > 0),
  constraint opt_start_delay_is_nonnegative check (opt_start_delay is null or opt_start_delay >= 0),
  constraint required_input_pattern_is_object
    check (required_input_pattern is null or jsonb_typeof(required_input_pattern) = 'object'),
  constraint forbidden_input_pattern_is_object
    check (forbidden_input_pattern is null or jsonb_typeof(forbidden_input_pattern) = 'object'),
  constraint when_unmet_is_valid check (when_unmet in ('fail', 'skip', 'skip-cascade')),
  constraint when_exhausted_is_valid check (when_exhausted in ('fail', 'skip', 'skip-cascade'))
);

create table pgflow.deps (
  flow_slug  text not null,
  dep_slug   text not null,
  step_slug  text not null,
  created_at timestamptz not null default now(),
  primary key (flow_slug, dep_slug, step_slug),
  constraint deps_flow_slug_dep_slug_fkey
    foreign key (flow_slug, dep_slug) references pgflow.steps (flow_slug, step_slug),
  constraint deps_flow_slug_step_slug_fkey
    foreign key (flow_slug, step_slug) references pgflow.steps (flow_slug, step_slug),
  constraint deps_check check (dep_slug <> step_slug)
);
create index deps_by_step on pgflow.deps (flow_slug, step_slug);

-- No foreign keys below this line: what happens to a run is written by the functions beside this file only,
-- and each key would cost every request a look-up and a row lock.
--
-- Rows that are updated soon after they were written leave room on their page for it (fillfactor) and have what
-- never changes first: then an update touches no index, and its WAL record holds only the changed end of the row.
create table pgflow.runs (
  run_id          uuid primary key default gen_random_uuid(),
  flow_slug       text not null,
  input           jsonb not null,
  started_at      timestamptz not null default now(),
  status          text not null default 'started',
  output          jsonb,
  remaining_steps int not null default 0,
  completed_at    timestamptz,
  failed_at       timestamptz,
  cancelled_at    timestamptz,
  constraint status_is_valid check (status in ('started', 'completed', 'failed')),
  constraint remaining_steps_is_nonnegative check (remaining_steps >= 0),
  constraint completed_at_when_completed check ((status = 'completed') = (completed_at is not null)),
  constraint failed_at_when_failed check ((status = 'failed') = (failed_at is not null)),
  constraint cancelled_is_failed check (cancelled_at is null or status = 'failed')
) with (fillfactor = 50);

create table pgflow.step_states (
  run_id          uuid not null,
  flow_slug       text not null,
  step_slug       text not null,
  created_at      timestamptz not null default now(),
  status          text not null default 'created',
  remaining_tasks int,
  initial_tasks   int,
  remaining_deps  int not null default 0,
  output          jsonb,
  error_message   text,
  skip_reason     text,
  started_at      timestamptz,
  completed_at    timestamptz,
  failed_at       timestamptz,
  skipped_at      timestamptz,
  primary key (run_id, step_slug),
  constraint status_is_valid check (status in ('created', 'started', 'completed', 'failed', 'skipped')),
  constraint remaining_tasks_is_nonnegative check (remaining_tasks is null or remaining_tasks >= 0),
  constraint remaining_deps_is_nonnegative check (remaining_deps >= 0),
  constraint output_only_for_completed_or_null check (output is null or status = 'completed'),
  constraint skip_reason_matches_status check ((status = 'skipped') = (skip_reason is not null)),
  constraint at_most_one_terminal_time check (num_nonnulls(completed_at, failed_at, skipped_at) <= 1)
) with (fillfactor = 40);

-- One row an instance: a process that runs tasks and gives signs of life (see Registry).
create table pgflow.workers (
  worker_id         uuid primary key,
  queue_name        text not null,
  function_name     text not null,
  started_at        timestamptz not null default now(),
  deprecated_at     timestamptz,
  stopped_at        timestamptz,
  last_heartbeat_at timestamptz not null default now(),
  lease             interval  -- how long it is taken for alive after a sign of life, as it says itself
);

create table pgflow.step_tasks (
  run_id                  uuid not null,
  flow_slug               text not null,
  step_slug               text not null,
  task_index              int not null default 0,
  message_id              bigint,
  status                  text not null default 'queued',
  attempts_count          int not null default 0,
  error_message           text,
  output                  jsonb,
  queued_at               timestamptz not null default now(),
  started_at              timestamptz,
  completed_at            timestamptz,
  failed_at               timestamptz,
  last_worker_id          uuid,
  requeued_count          int not null default 0,
  last_requeued_at        timestamptz,
  permanently_stalled_at  timestamptz,
  not_before              timestamptz,
  primary key (run_id, step_slug, task_index),
  constraint status_is_valid check (status in ('queued', 'started', 'completed', 'failed')),
  constraint attempts_count_is_nonnegative check (attempts_count >= 0),
  constraint waits_only_when_queued check (not_before is null or status = 'queued')
) with (fillfactor = 50);
create index step_tasks_by_worker on pgflow.step_tasks (last_worker_id) where status = 'started';
create index step_tasks_by_due_time on pgflow.step_tasks (not_before) where not_before is not null;

-- schema/10_pgflow/20_define.sql

-- Defining flows: idempotent, never changing what is there.

-- A flow's queue bears its slug when that is a legal queue name, else a hash of it: pgmq folds case and
-- allows 47 characters.
create function pgflow.queue_name(flow_slug text) returns text
language sql immutable parallel safe as $$
  select case when length(flow_slug) <= 47 and flow_slug = lower(flow_slug) then flow_slug
              else 'pgflow_' || md5(flow_slug) end
$$;

create function pgflow.create_flow(
  flow_slug text, max_attempts int default null, base_delay int default null, timeout int default null
) returns pgflow.flows
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  flow pgflow.flows;
begin
  insert into pgflow.flows as f (flow_slug, opt_max_attempts, opt_base_delay, opt_timeout)
  values (create_flow.flow_slug, coalesce(max_attempts, 3), coalesce(base_delay, 5), coalesce(timeout, 60))
  on conflict on constraint flows_pkey do nothing;
  perform pgmq.create(pgflow.queue_name(create_flow.flow_slug))
    where not exists (select from pgmq.meta m where m.queue_name = pgflow.queue_name(create_flow.flow_slug));
  select * into flow from pgflow.flows f where f.flow_slug = create_flow.flow_slug;
  return flow;
end
$$;

create function pgflow.add_step(
  flow_slug text, step_slug text, deps_slugs text[] default '{}', max_attempts int default null,
  base_delay int default null, timeout int default null, start_delay int default null,
  step_type text default 'single', required_input_pattern jsonb default null,
  forbidden_input_pattern jsonb default null, when_unmet text default 'skip', when_exhausted text default 'fail'
) returns pgflow.steps
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  step pgflow.steps;
begin
  if add_step.step_type = 'map' and cardinality(deps_slugs) > 1 then
    raise exception 'Map step "%" can have at most one dependency, but % were provided: %',
      add_step.step_slug, cardinality(deps_slugs), array_to_string(deps_slugs, ', ');
  end if;
  -- one definer of a flow at a time, so that step_index has no gaps and no doubles
  perform from pgflow.flows f where f.flow_slug = add_step.flow_slug for update;
  insert into pgflow.steps as s (
    flow_slug, step_slug, step_type, step_index, deps_count, opt_max_attempts, opt_base_delay, opt_timeout,
    opt_start_delay, required_input_pattern, forbidden_input_pattern, when_unmet, when_exhausted)
  select add_step.flow_slug, add_step.step_slug, coalesce(add_step.step_type, 'single'),
         (select coalesce(max(o.step_index) + 1, 0) from pgflow.steps o where o.flow_slug = add_step.flow_slug),
         cardinality(coalesce(deps_slugs, '{}')), max_attempts, base_delay, timeout, start_delay,
         add_step.required_input_pattern, add_step.forbidden_input_pattern,
         coalesce(add_step.when_unmet, 'skip'), coalesce(add_step.when_exhausted, 'fail')
  on conflict on constraint steps_pkey do nothing;
  insert into pgflow.deps (flow_slug, dep_slug, step_slug)
  select add_step.flow_slug, dep, add_step.step_slug from unnest(deps_slugs) as dep
  on conflict do nothing;
  select * into step from pgflow.steps s
  where s.flow_slug = add_step.flow_slug and s.step_slug = add_step.step_slug;
  return step;
end
$$;

create function pgflow.calculate_retry_delay(base_delay numeric, attempts_count int) returns int
language sql immutable parallel safe as $$
  select least(floor(base_delay * 2::numeric ^ least(attempts_count, 60)), 2147483647)::int
$$;

-- schema/10_pgflow/30_chains.sql

-- Chains: flows whose steps are single and follow one another. A worker takes the first step it finds and goes
-- on to the end; each function here does a whole batch of runs in one pass.
--
-- The row of the claimed task is fence and lock: whoever ends a task (completes, fails, releases, recovers,
-- cancels) first changes that row where it is still started by this worker in this attempt, then the step
-- states, then the run. Everybody locks in that order. The fence is written as a CASE, so that the row is found by
-- its key: the index of a worker's started tasks is full of those it has ended.

-- Start runs and claim their first task for the worker, without a detour through the flow's queue. A run_id
-- that was used before is left out: the same message, delivered twice, starts nothing twice.
create function pgflow.start_claimed(p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_inputs jsonb[])
returns table (run_id uuid, step_slug text, attempt int)
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_run_ids uuid[];
  v_first text;
  v_count int;
begin
  select count(*)::int, (array_agg(s.step_slug order by s.step_index))[1] into v_count, v_first
  from pgflow.steps s where s.flow_slug = p_flow_slug;
  with started as (
    insert into pgflow.runs (run_id, flow_slug, input, remaining_steps)
    select i.id, p_flow_slug, i.input, v_count
    from unnest(p_run_ids, p_inputs) as i (id, input)
    on conflict on constraint runs_pkey do nothing
    returning runs.run_id
  )
  select array_agg(started.run_id) into v_run_ids from started;
  if v_run_ids is null then
    return;
  end if;
  insert into pgflow.step_states
    (run_id, flow_slug, step_slug, status, remaining_tasks, initial_tasks, remaining_deps, started_at)
  select r.id, p_flow_slug, s.step_slug,
         case when s.deps_count = 0 then 'started' else 'created' end,
         case when s.deps_count = 0 then 1 end, 1, s.deps_count,
         case when s.deps_count = 0 then now() end
  from unnest(v_run_ids) as r (id) cross join pgflow.steps s
  where s.flow_slug = p_flow_slug;
  insert into pgflow.step_tasks (run_id, flow_slug, step_slug, status, attempts_count, started_at, last_worker_id)
  select r.id, p_flow_slug, v_first, 'started', 1, now(), p_worker_id
  from unnest(v_run_ids) as r (id);
  return query select r.id, v_first, 1 from unnest(v_run_ids) as r (id);
end
$$;

-- Claim tasks from the flow's queue: those that were retried, released or recovered. Their messages are
-- deleted at once, since a lease is the worker's sign of life, not a message's visibility.
create function pgflow.claim_chains(p_flow_slug text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb)
language sql set search_path = pg_catalog, pgflow as $$
  with popped as (
    select case when m.message ->> 'run_id' ~ '^[0-9a-f-]{36}$' then (m.message ->> 'run_id')::uuid end as run_id,
           m.message ->> 'step_slug' as step_slug
    from pgmq.pop(pgflow.queue_name(p_flow_slug), p_limit) as m
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
  from claimed c join pgflow.runs r using (run_id)
$$;

-- Complete the claimed tasks and every step behind them, and with that their runs. The task of the first step stands
-- for the chain; the others have a state, but no task of their own. p_outputs: one object a
-- run, {step: output}; a step that is not in it has the output null. Returns the runs that were completed;
-- those that are missing had been taken from this worker.
create function pgflow.complete_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[], p_outputs jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_done uuid[];
  v_outputs jsonb[];
begin
  with ended as (
    update pgflow.step_tasks t
    set status = 'completed', completed_at = now(), output = i.outputs -> i.step_slug
    from unnest(p_run_ids, p_step_slugs, p_attempts, p_outputs) as i (run_id, step_slug, attempt, outputs)
    join pgflow.runs r on r.run_id = i.run_id and r.status = 'started'
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id, i.outputs
  )
  select array_agg(e.run_id), array_agg(e.outputs) into v_done, v_outputs from ended e;
  if v_done is null then
    return;
  end if;
  update pgflow.step_states st
  set status = 'completed', remaining_tasks = 0, remaining_deps = 0, output = d.outputs -> st.step_slug,
      started_at = coalesce(st.started_at, now()), completed_at = now()
  from unnest(v_done, v_outputs) as d (run_id, outputs)
  where st.run_id = d.run_id and st.status in ('created', 'started');
  update pgflow.runs r
  set status = 'completed', completed_at = now(), remaining_steps = 0,
      output = jsonb_build_object(last.step_slug, d.outputs -> last.step_slug)
  from unnest(v_done, v_outputs) as d (run_id, outputs)
  cross join (select s.step_slug from pgflow.steps s where s.flow_slug = p_flow_slug
              order by s.step_index desc limit 1) as last
  where r.run_id = d.run_id;
  return query select unnest(v_done);
end
$$;

-- Put claimed tasks back: after a delay and counting the attempt (retry), or at once and without counting it
-- (release). What waits longer than a moment waits in step_tasks, not as an invisible message on the queue.
create function pgflow.return_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[],
  p_delays double precision[], p_errors text[], p_counts boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_done uuid[];
begin
  with back as (
    update pgflow.step_tasks t
    set status = 'queued', started_at = null, queued_at = now(), error_message = coalesce(i.error, t.error_message),
        attempts_count = t.attempts_count - case when p_counts then 0 else 1 end,
        not_before = case when i.delay > 0 then now() + make_interval(secs => i.delay) end
    from unnest(p_run_ids, p_step_slugs, p_attempts, p_delays, p_errors)
      as i (run_id, step_slug, attempt, delay, error)
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id
  )
  select array_agg(b.run_id) into v_done from back b;
  perform pgflow.send_queued(p_flow_slug, v_done);
  return query select unnest(v_done);
end
$$;

-- Send the messages of queued tasks that may run now.
create function pgflow.send_queued(p_flow_slug text, p_run_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_messages jsonb[];
begin
  select array_agg(jsonb_build_object('flow_slug', t.flow_slug, 'run_id', t.run_id, 'step_slug', t.step_slug,
                                      'task_index', t.task_index))
  into v_messages
  from pgflow.step_tasks t
  where t.run_id = any (p_run_ids) and t.status = 'queued' and t.not_before is null;
  if v_messages is not null then
    perform pgmq.send_batch(pgflow.queue_name(p_flow_slug), v_messages);
  end if;
end
$$;

-- Fail claimed tasks for good, and with them their steps and runs. p_details is kept as the failed task's
-- output, for whoever publishes the failure.
create function pgflow.fail_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[],
  p_errors text[], p_details jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_done uuid[];
  v_errors text[];
begin
  with ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = now(), error_message = i.error, output = i.details
    from unnest(p_run_ids, p_step_slugs, p_attempts, p_errors, p_details)
      as i (run_id, step_slug, attempt, error, details)
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id, i.error
  )
  select array_agg(e.run_id), array_agg(e.error) into v_done, v_errors from ended e;
  perform pgflow.fail_runs(v_done, v_errors, false);
  return query select unnest(v_done);
end
$$;

-- The second half of every failure: the started step fails with its run. The task is ended already.
create function pgflow.fail_runs(p_run_ids uuid[], p_errors text[], p_cancelled boolean) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  update pgflow.step_states st
  set status = 'failed', failed_at = now(), error_message = i.error
  from unnest(p_run_ids, p_errors) as i (run_id, error)
  where st.run_id = i.run_id and st.status = 'started';
  update pgflow.runs r
  set status = 'failed', failed_at = now(), cancelled_at = case when p_cancelled then now() end
  from unnest(p_run_ids) as i (run_id)
  where r.run_id = i.run_id and r.status = 'started';
end
$$;

-- Cancel started runs: their open tasks fail, and with them the runs. Returns those that were cancelled.
create function pgflow.cancel_runs(p_run_ids uuid[]) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_done uuid[];
begin
  with ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = now(), error_message = 'cancelled', not_before = null
    where t.run_id = any (p_run_ids) and t.status in ('queued', 'started')
    returning t.run_id
  )
  select array_agg(distinct e.run_id) into v_done from ended e;
  perform pgflow.fail_runs(v_done, array_fill('cancelled'::text, array[coalesce(cardinality(v_done), 0)]), true);
  return query select unnest(v_done);
end
$$;

-- Move tasks whose time has come onto the flow's queue; tells how many, and the seconds until the next one (null
-- if there is none).
create function pgflow.send_due(p_flow_slug text, p_limit int default 1000)
returns table (sent int, next_in double precision)
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_due uuid[];
begin
  with due as (
    select t.run_id, t.step_slug, t.task_index from pgflow.step_tasks t
    where t.not_before <= clock_timestamp() and t.flow_slug = p_flow_slug
    order by t.not_before limit p_limit
    for update skip locked
  ), moved as (
    update pgflow.step_tasks t set not_before = null
    from due where (t.run_id, t.step_slug, t.task_index) = (due.run_id, due.step_slug, due.task_index)
    returning t.run_id
  )
  select array_agg(m.run_id) into v_due from moved m;
  perform pgflow.send_queued(p_flow_slug, v_due);
  return query
    select coalesce(cardinality(v_due), 0),
           (select greatest(extract(epoch from t.not_before - clock_timestamp()), 0)::double precision
            from pgflow.step_tasks t where t.not_before is not null and t.flow_slug = p_flow_slug
            order by t.not_before limit 1);
end
$$;

-- schema/10_pgflow/40_workers.sql

-- Instances and their signs of life. A task's lease is its worker's: one row renewed every few seconds for all
-- the tasks a process runs.

-- A sign of life; registers the worker when it is new, and revives one that had been given up. Returns whether
-- it had been given up: its tasks have been handed to others, and whatever it completes of them is refused.
create function pgflow.heartbeat(
  p_worker_id uuid, p_queue_name text, p_function_name text, p_lease interval default null
) returns boolean
language plpgsql set search_path = pg_catalog, pgflow as $$
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

create function pgflow.mark_worker_stopped(worker_id uuid) returns void
language sql set search_path = pg_catalog, pgflow as $$
  update pgflow.workers w set stopped_at = clock_timestamp() where w.worker_id = mark_worker_stopped.worker_id
$$;

-- Give back the tasks of workers that gave no sign of life for as long as their own lease, p_lease where they told none:
-- not that of whoever asks, which may be shorter than his neighbours' heartbeats. An attempt was spent. A task that has
-- none left, or that lost its fifth worker, fails with its run: it may be what kills them. After a restart of the server
-- everybody is granted one lease to come back.
create function pgflow.recover_tasks(p_lease interval default '12 seconds') returns table (run_id uuid, exhausted boolean)
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_flow text;
  v_back uuid[];
  v_lost uuid[];
begin
  update pgflow.workers w set stopped_at = clock_timestamp()
  where w.worker_id in (
    select d.worker_id from pgflow.workers d
    where d.stopped_at is null and d.last_heartbeat_at < clock_timestamp() - coalesce(d.lease, p_lease)
      and pg_postmaster_start_time() < clock_timestamp() - coalesce(d.lease, p_lease)
    for update skip locked);
  for v_flow in
    select distinct t.flow_slug from pgflow.step_tasks t join pgflow.workers w on w.worker_id = t.last_worker_id
    where t.status = 'started' and w.stopped_at is not null
  loop
    with stranded as (
      select t.run_id, t.step_slug, t.task_index,
             t.requeued_count >= 4 or t.attempts_count >= coalesce(s.opt_max_attempts, f.opt_max_attempts) as exhausted
      from pgflow.step_tasks t
      join pgflow.workers w on w.worker_id = t.last_worker_id
      join pgflow.steps s on s.flow_slug = t.flow_slug and s.step_slug = t.step_slug
      join pgflow.flows f on f.flow_slug = t.flow_slug
      where t.status = 'started' and t.flow_slug = v_flow and w.stopped_at is not null
      order by t.run_id
      for update of t skip locked
    ), moved as (
      update pgflow.step_tasks t
      set status = case when d.exhausted then 'failed' else 'queued' end,
          failed_at = case when d.exhausted then now() end,
          error_message = 'its worker was lost in attempt ' || t.attempts_count,
          started_at = null, requeued_count = t.requeued_count + 1, last_requeued_at = now()
      from stranded d
      where (t.run_id, t.step_slug, t.task_index) = (d.run_id, d.step_slug, d.task_index)
      returning t.run_id, d.exhausted
    )
    select array_agg(m.run_id) filter (where not m.exhausted), array_agg(m.run_id) filter (where m.exhausted)
    into v_back, v_lost from moved m;
    perform pgflow.send_queued(v_flow, v_back);
    perform pgflow.fail_runs(
      v_lost, array_fill('its worker was lost in every attempt'::text, array[coalesce(cardinality(v_lost), 0)]), false);
    return query select unnest(v_back), false union all select unnest(v_lost), true;
  end loop;
end
$$;

-- schema/20_pgnexus/10_tables.sql

-- The caller side's tables.

create schema pgnexus;

-- A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds before the random bits of a version 4.
create function pgnexus.uuidv7() returns uuid
language sql volatile parallel safe as $$
  select (lpad(to_hex(floor(extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
          || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid
$$;

-- The smallest UUIDv7 of a moment: the lower bound of a partition, or of a search by time.
create function pgnexus.uuid_floor(moment timestamptz) returns uuid
language sql immutable parallel safe as $$
  select (lpad(to_hex(floor(extract(epoch from moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- One row a request, from the moment it is accepted. The first terminal state wins.
create table pgnexus.job_results (
  -- what never changes comes first: then the WAL record of the update that ends a request need not repeat it
  request_id        uuid not null,
  input             jsonb,
  workflow          text not null default 'LLMRequestWorkflow',
  instance_id       uuid,
  job_id            text,
  agent_id          text,
  task_type         text,
  complexity        text,
  priority          text,
  retry_of          uuid,
  enqueued_at       timestamptz not null default clock_timestamp(),
  deadline          timestamptz,
  status            text not null,
  model             text,
  provider          text,
  output            jsonb,
  error             jsonb,
  prompt_tokens     bigint,
  completion_tokens bigint,
  total_tokens      bigint,
  cached_tokens     bigint,
  cost              numeric,
  duration_ms       bigint,
  attempts          int not null default 0,
  finished_at       timestamptz,
  primary key (request_id),
  constraint status_is_valid
    check (status in ('scheduled', 'enqueued', 'success', 'failed', 'timeout', 'cancelled')),
  constraint finished_when_terminal check ((status in ('scheduled', 'enqueued')) = (finished_at is null)),
  constraint error_when_not_successful
    check ((error is not null) = (status in ('failed', 'timeout', 'cancelled'))),
  constraint amounts_are_nonnegative check (
    prompt_tokens >= 0 and completion_tokens >= 0 and total_tokens >= 0 and cached_tokens >= 0
    and cost >= 0 and duration_ms >= 0 and attempts >= 0)
) partition by range (request_id);

-- No index names the status, so that ending a request changes no index.
create index job_results_by_deadline on pgnexus.job_results (deadline);
create index job_results_by_agent on pgnexus.job_results (agent_id, request_id) where agent_id is not null;

-- Ids of other versions than 7, and whatever no month was made for.
create table pgnexus.job_results_default partition of pgnexus.job_results default with (fillfactor = 50);

create table pgnexus.idempotency_keys (
  key        text primary key,
  request_id uuid not null,
  body_hash  bytea not null,
  expires_at timestamptz not null
);
create index idempotency_keys_by_expiry on pgnexus.idempotency_keys (expires_at);

-- Requests that may not run yet: queues hold only what may run now.
create table pgnexus.scheduled_requests (
  request_id uuid primary key,
  due_at     timestamptz not null,
  queue      text not null,
  message    jsonb not null
);
create index scheduled_requests_by_due_time on pgnexus.scheduled_requests (due_at);

-- Until when overdue requests have been looked for; one row.
create table pgnexus.sweeps (
  only_row boolean primary key default true check (only_row),
  swept_to timestamptz not null default '-infinity'
);
insert into pgnexus.sweeps default values;

-- What this installation is called, so that a connection into another one is noticed; one row.
create table pgnexus.installation (
  only_row boolean primary key default true check (only_row),
  id       uuid not null default gen_random_uuid()
);
insert into pgnexus.installation default values;

create function pgnexus.home() returns text
language sql stable set search_path = pg_catalog, pgnexus as $$
  select current_database() || ' ' || i.id from pgnexus.installation i
$$;

-- schema/20_pgnexus/20_partitions.sql

-- Monthly partitions of job_results, made ahead of time.

create function pgnexus.ensure_partitions(p_from timestamptz default now(), p_months int default 3) returns int
language plpgsql security definer set search_path = pg_catalog, pgnexus as $$
declare
  v_month timestamptz;
  v_name text;
  v_low uuid;
  v_high uuid;
  v_made int := 0;
begin
  perform pg_advisory_xact_lock(hashtext('pgnexus.ensure_partitions'));
  for v_month in
    select m from generate_series(date_trunc('month', p_from, 'UTC'),
                                  date_trunc('month', p_from, 'UTC') + make_interval(months => p_months),
                                  interval '1 month') as m
  loop
    v_name := 'job_results_' || to_char(v_month at time zone 'UTC', 'YYYY_MM');
    v_low := pgnexus.uuid_floor(v_month);
    v_high := pgnexus.uuid_floor((v_month at time zone 'UTC' + interval '1 month') at time zone 'UTC');
    if to_regclass('pgnexus.' || v_name) is null then
      -- rows that came before their month was made move along with it
      -- an input that is compressed, or moved out of the row, when the answer comes would be written once more
      execute format('create table pgnexus.%I (like pgnexus.job_results including all)
                      with (fillfactor = 45, toast_tuple_target = 4080)', v_name);
      execute format('with moved as (delete from pgnexus.job_results_default
                                     where request_id >= %L and request_id < %L returning *)
                      insert into pgnexus.%I select * from moved', v_low, v_high, v_name);
      execute format('alter table pgnexus.job_results attach partition pgnexus.%I for values from (%L) to (%L)',
                     v_name, v_low, v_high);
      v_made := v_made + 1;
    end if;
  end loop;
  return v_made;
end
$$;

select pgnexus.ensure_partitions();

-- schema/20_pgnexus/30_enqueue.sql

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
language sql stable set search_path = pg_catalog, pgnexus as $$
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
      when (i.message ->> 'complexity') not in ('simple', 'medium', 'complex')
        then format('complexity "%s" is none of simple, medium, complex', i.message ->> 'complexity')
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
     or (i.message ->> 'complexity') not in ('simple', 'medium', 'complex')
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
language plpgsql set search_path = pg_catalog, pgnexus as $$
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
language plpgsql set search_path = pg_catalog, pgnexus as $$
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

-- schema/20_pgnexus/40_results.sql

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
  duration_ms bigint, attempts int, message jsonb)
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
         m.message
  from unnest(p_messages) with ordinality as m (message, ordinal)
$$;

-- Record results, in the order given, each at its terminal state if its request has none yet. Returns those
-- that ended their request. A result whose request was never stored here is stored all the same.
create function pgnexus.record_results(p_messages jsonb[], p_notify boolean default true)
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
        cost = f.cost, duration_ms = f.duration_ms, attempts = f.attempts, finished_at = clock_timestamp()
    from firsts f
    where j.request_id = f.request_id and j.status in ('enqueued', 'scheduled')
    returning j.request_id, f.message
  ), inserted as (
    insert into pgnexus.job_results as j (
      request_id, status, workflow, agent_id, model, provider, output, error, prompt_tokens, completion_tokens,
      total_tokens, cached_tokens, cost, duration_ms, attempts, finished_at)
    select f.request_id, f.status, 'LLMRequestWorkflow', f.agent_id, f.model, f.provider, f.output, f.error,
           f.prompt_tokens, f.completion_tokens, f.total_tokens, f.cached_tokens, f.cost, f.duration_ms, f.attempts,
           clock_timestamp()
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
  if p_notify then
    perform pgnexus.notify_done(v_ended);
  end if;
  return query select e.id, e.message from unnest(v_ended, v_results) as e (id, message);
end
$$;

-- What a late answer used is paid for, once.
create function pgnexus.book_late_results(p_messages jsonb[], p_ended uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus as $$
  update pgnexus.job_results j
  set prompt_tokens = l.prompt_tokens, completion_tokens = l.completion_tokens, total_tokens = l.total_tokens,
      cached_tokens = l.cached_tokens, cost = l.cost, attempts = greatest(j.attempts, l.attempts)
  from (
    select distinct on (r.request_id) r.*
    from pgnexus.read_results(p_messages) r
    where r.total_tokens > 0 order by r.request_id, r.ordinal desc
  ) l
  where j.request_id = l.request_id and j.status in ('failed', 'timeout', 'cancelled')
    and coalesce(j.total_tokens, 0) = 0
$$;

-- Take results off a queue into job_results, all in this transaction.
create function pgnexus.take_results(p_queue text, p_limit int, p_notify boolean default true)
returns table (taken int, request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus as $$
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
language plpgsql set search_path = pg_catalog, pgnexus as $$
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
language plpgsql set search_path = pg_catalog, pgnexus as $$
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

-- schema/20_pgnexus/50_control.sql

-- Cancelling, and the sweep: what must happen on the caller's side also when no nexus is alive.

-- Cancel requests that have not ended; returns those that were cancelled by this.
create function pgnexus.cancel(p_request_ids uuid[]) returns setof uuid
language plpgsql set search_path = pg_catalog, pgnexus as $$
#variable_conflict use_column
declare
  v_done uuid[];
begin
  with ended as (
    update pgnexus.job_results j
    set status = 'cancelled', finished_at = clock_timestamp(),
        error = jsonb_build_object('type', 'cancelled', 'message', 'cancelled by the caller', 'retryable', false)
    where j.request_id = any (p_request_ids) and j.status in ('scheduled', 'enqueued')
    returning j.request_id
  )
  select array_agg(e.request_id) into v_done from ended e;
  if v_done is not null then
    perform pgnexus.unschedule(v_done);
    perform nexus_api.cancel(v_done);
    perform pgnexus.notify_done(v_done);
  end if;
  return query select unnest(v_done);
end
$$;

-- Requests that have ended need not wait for their time. One that send_due is sending at this moment is left to it,
-- for it locks in the other order; the nexus side answers such a request as cancelled or overdue.
create function pgnexus.unschedule(p_request_ids uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus as $$
  delete from pgnexus.scheduled_requests s where s.request_id in (
    select d.request_id from pgnexus.scheduled_requests d where d.request_id = any (p_request_ids)
    for update skip locked)
$$;

create function pgnexus.notify_done(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus as $$
declare
  v_ids text;
begin
  -- ids only, and in portions: a payload of 8,000 bytes would abort the transaction
  for v_ids in
    select string_agg(e.id::text, ',')
    from unnest(p_request_ids) with ordinality as e (id, ordinal) group by (e.ordinal - 1) / 200
  loop
    perform pg_notify('pgnexus_done', v_ids);
  end loop;
end
$$;

-- Move scheduled requests that are due onto their lanes; returns how many.
create function pgnexus.send_due(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgnexus as $$
#variable_conflict use_column
declare
  v_ids uuid[] := '{}';
  v_lane text;
  v_lane_ids uuid[];
  v_messages jsonb[];
begin
  for v_lane, v_lane_ids, v_messages in
    with due as (
      delete from pgnexus.scheduled_requests s
      where s.request_id in (
        select d.request_id from pgnexus.scheduled_requests d
        where d.due_at <= clock_timestamp() order by d.due_at limit p_limit for update skip locked)
      returning s.request_id, s.queue, s.message
    )
    select d.queue, array_agg(d.request_id), array_agg(d.message order by d.request_id) from due d group by d.queue
  loop
    perform pgmq.send_batch(v_lane, v_messages);
    v_ids := v_ids || v_lane_ids;
  end loop;
  update pgnexus.job_results j set status = 'enqueued' where j.request_id = any (v_ids) and j.status = 'scheduled';
  if cardinality(v_ids) > 0 then
    perform pg_notify('pgnexus_requests', '');
  end if;
  return cardinality(v_ids);
end
$$;

-- End requests whose deadline has passed as timeout. Looks at deadlines since the last sweep, less a minute for
-- transactions that commit late; at all of them when p_all is set.
create function pgnexus.time_out_overdue(p_limit int, p_all boolean default false) returns int
language plpgsql set search_path = pg_catalog, pgnexus as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_from timestamptz;
  v_done uuid[];
begin
  select case when p_all then '-infinity' else s.swept_to - interval '1 minute' end into v_from
  from pgnexus.sweeps s for update skip locked;
  if not found then
    return 0;  -- another process is sweeping
  end if;
  with overdue as (
    select j.request_id from pgnexus.job_results j
    where j.deadline > v_from and j.deadline <= v_now and j.status in ('scheduled', 'enqueued')
    order by j.deadline limit p_limit
    for update skip locked
  ), ended as (
    update pgnexus.job_results j
    set status = 'timeout', finished_at = clock_timestamp(),
        error = jsonb_build_object('type', 'timeout', 'retryable', true, 'message', 'its deadline passed before an answer came')
    from overdue o where j.request_id = o.request_id
    returning j.request_id
  )
  select array_agg(e.request_id) into v_done from ended e;
  perform pgnexus.unschedule(v_done);
  perform pgnexus.notify_done(v_done);
  if coalesce(cardinality(v_done), 0) < p_limit then
    update pgnexus.sweeps set swept_to = v_now where swept_to < v_now - interval '1 minute';
  end if;
  return coalesce(cardinality(v_done), 0);
end
$$;

-- Everything that time brings about on the caller's side; returns what was done and the seconds until the next
-- thing that is known to come, null if there is none.
create function pgnexus.sweep(p_limit int, p_all boolean default false)
returns table (sent int, timed_out int, next_in double precision)
language plpgsql set search_path = pg_catalog, pgnexus as $$
begin
  sent := pgnexus.send_due(p_limit);
  timed_out := pgnexus.time_out_overdue(p_limit, p_all);
  delete from pgnexus.idempotency_keys k where k.key in (
    select e.key from pgnexus.idempotency_keys e
    where e.expires_at < clock_timestamp() order by e.expires_at limit p_limit for update skip locked);
  next_in := extract(epoch from least(
    (select min(s.due_at) from pgnexus.scheduled_requests s),
    (select j.deadline from pgnexus.job_results j where j.deadline > clock_timestamp()
       order by j.deadline limit 1)) - clock_timestamp());
  return next;
end
$$;

-- schema/30_nexus/10_tables.sql

-- The nexus side's tables.

create schema nexus;

-- The books: one row a provider call. attempt counts how often the request was taken up, call the provider calls
-- of that time; the key keeps a call from being booked twice when a commit was cut off half-way.
create table nexus.attempts (
  request_id        uuid not null,
  attempt           int not null,
  call              int not null,
  instance_id       uuid not null,
  provider          text not null,
  model             text not null,
  complexity        text,
  task_type         text,
  agent_id          text,
  outcome           text not null,
  error             text,
  started_at        timestamptz not null,
  duration_ms       int not null,
  prompt_tokens     bigint not null default 0,
  completion_tokens bigint not null default 0,
  cached_tokens     bigint not null default 0,
  cost              numeric,
  primary key (request_id, attempt, call, instance_id),
  constraint amounts_are_nonnegative
    check (duration_ms >= 0 and prompt_tokens >= 0 and completion_tokens >= 0 and cached_tokens >= 0 and cost >= 0)
);
-- rows come in the order of time, so a BRIN index finds them and costs a write next to nothing
create index attempts_by_time on nexus.attempts using brin (started_at);

-- Tokens, cost and latency of the calls, by hour and by all that one asks for.
create view nexus.metrics as
  select date_trunc('hour', started_at) as hour, provider, model, complexity, task_type, agent_id, outcome,
         count(*) as calls, sum(prompt_tokens) as prompt_tokens, sum(completion_tokens) as completion_tokens,
         sum(cached_tokens) as cached_tokens, sum(cost) as cost,
         count(*) filter (where cost is null and outcome = 'success') as calls_of_unknown_cost,
         percentile_cont(0.5) within group (order by duration_ms) as p50_ms,
         percentile_cont(0.99) within group (order by duration_ms) as p99_ms
  from nexus.attempts
  group by 1, 2, 3, 4, 5, 6, 7;

-- Requests that were cancelled before a worker took them up.
create table nexus.cancellations (
  request_id   uuid primary key,
  cancelled_at timestamptz not null default now()
);

-- What each instance can serve, told with its signs of life; callers ask through nexus_api.available_models.
create table nexus.models (
  instance_id uuid not null,
  provider    text not null,
  model       text not null,
  usable      boolean not null,
  reason      text,
  primary key (instance_id, provider, model)
);

-- schema/30_nexus/20_publish.sql

-- Publishing: the last word on a request, in the transaction that ends its run.

-- Send results to the queues they are wanted on. A queue that does not exist (any more), that this side may not write
-- to, a request lane or a flow's own cannot take one: it goes to ai_results then, where it is stored all the same.
create function nexus.publish(p_queues text[], p_results jsonb[], p_notify boolean) returns void
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_queue text;
  v_results jsonb[];
begin
  for v_queue, v_results in
    select i.queue, array_agg(i.result) from unnest(p_queues, p_results) as i (queue, result) group by 1
  loop
    if v_queue <> 'ai_results' and not (
      nexus_api.takes_results(v_queue)
      and coalesce(has_table_privilege(to_regclass(format('pgmq.%I', 'q_' || v_queue)), 'insert'), false))
    then
      v_queue := 'ai_results';
    end if;
    perform pgmq.send_batch(v_queue, v_results);
  end loop;
  if p_notify then
    perform pg_notify('pgnexus_results', '');
  end if;
end
$$;

create function nexus.failure(p_request jsonb, p_status text, p_type text, p_message text) returns jsonb
language sql stable as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'request_id', p_request -> 'request_id', 'status', p_status,
    'agent_id', case when jsonb_typeof(p_request -> 'agent_id') = 'string' then p_request -> 'agent_id' end,
    'error', jsonb_build_object('type', p_type, 'message', p_message, 'retryable', p_type in ('timeout', 'worker_lost')),
    'attempts', 0, 'timestamp', clock_timestamp()))
$$;

-- Every failed run of LLMRequestWorkflow publishes its failure here, whatever failed it: the workflow, the last
-- lost worker, a cancel, an operator. What the workflow told of it is in its failed task.
create function nexus.publish_failed_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus as $$
declare
  v_error text;
  v_details jsonb;
  v_attempts int;
begin
  select t.error_message, t.output, t.attempts_count into v_error, v_details, v_attempts
  from pgflow.step_tasks t where t.run_id = new.run_id and t.status = 'failed'
  order by t.failed_at desc limit 1;
  perform nexus.publish(
    array[coalesce(new.input ->> 'reply_to', 'ai_results')],
    array[case
      when new.cancelled_at is not null then nexus.failure(new.input, 'cancelled', 'cancelled', 'cancelled')
      else nexus.failure(new.input, 'failed', 'worker_lost', coalesce(v_error, 'the run failed'))
           || jsonb_build_object('attempts', coalesce(v_attempts, 0)) || coalesce(v_details, '{}')
    end],
    true);
  return null;
end
$$;

create trigger publish_failed_run
  after update of status on pgflow.runs for each row
  when (new.status = 'failed' and old.status <> 'failed' and new.flow_slug = 'llm_request_workflow')
  execute function nexus.publish_failed_run();

-- schema/30_nexus/30_take.sql

-- T2: requests off their lanes into runs of LLMRequestWorkflow, with their first task claimed.

create function nexus.try_timestamptz(p_text text) returns timestamptz
language plpgsql stable as $$
begin
  return case when isfinite(p_text::timestamptz) then p_text::timestamptz end;
exception when others then
  return null;  -- the workflow's own validation will say what is wrong with it
end
$$;

create function nexus.try_uuid(p_text text) returns uuid
language sql immutable parallel safe as $$
  select case when p_text ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then p_text::uuid end
$$;

-- Take up to p_limit messages off one lane, and start them.
create function nexus.take_lane(p_lane text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision)
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
create function nexus.start_messages(p_lane text, p_worker_id uuid, p_messages pgmq.message_record[])
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision)
language plpgsql set search_path = pg_catalog, nexus as $$
#variable_conflict use_column
declare
  v_ids uuid[];
  v_inputs jsonb[];
  v_ended uuid[];
begin
  perform nexus_api.archive_message(p_lane, m, 'no request: needs request_id, a UUID')
  from unnest(p_messages) m where nexus.try_uuid(m.message ->> 'request_id') is null;
  select array_agg(f.id), array_agg(f.message) into v_ids, v_inputs
  from (
    select distinct on (u.id) u.id, m.message
    from unnest(p_messages) m cross join lateral nexus.try_uuid(m.message ->> 'request_id') as u (id)
    where u.id is not null order by u.id, m.msg_id
  ) f;
  if v_ids is null then
    return;
  end if;
  v_ended := nexus.answer_ended(v_ids, v_inputs);
  return query
    select s.run_id, s.step_slug, s.attempt, i.input,
           extract(epoch from nexus.try_timestamptz(i.input ->> 'deadline') - clock_timestamp())::double precision
    from unnest(v_ids, v_inputs) as i (id, input)
    join pgflow.start_claimed(
      'llm_request_workflow', p_worker_id,
      (select array_agg(a.id) from unnest(v_ids) as a (id) where a.id <> all (v_ended)),
      (select array_agg(a.input) from unnest(v_ids, v_inputs) as a (id, input) where a.id <> all (v_ended))
    ) s on s.run_id = i.id;
end
$$;

-- Answer the requests that were cancelled or whose deadline passed before anyone took them up; returns them. Each
-- gets a run that has failed already, so that its message, delivered twice, is answered once.
create function nexus.answer_ended(p_ids uuid[], p_inputs jsonb[]) returns uuid[]
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_ended uuid[];
  v_queues text[];
  v_results jsonb[];
begin
  with ended as (
    insert into pgflow.runs (run_id, flow_slug, status, input, failed_at, cancelled_at)
    select i.id, 'llm_request_workflow', 'failed', i.input, now(), case when c.request_id is not null then now() end
    from unnest(p_ids, p_inputs) as i (id, input)
    left join nexus.cancellations c on c.request_id = i.id
    where c.request_id is not null or nexus.try_timestamptz(i.input ->> 'deadline') <= clock_timestamp()
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
  return coalesce(v_ended, '{}');
end
$$;

-- Whether a queue that requests come from has one to take. pgmq plans each pop anew; asking first, with a plan that is
-- kept, halves what a look at mostly empty queues costs.
create function nexus.has_requests(p_queue text) returns boolean
language plpgsql set search_path = pg_catalog, nexus as $$
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
-- to end the task with; seconds_left is null without a deadline.
create function nexus.take_requests(p_worker_id uuid, p_limit int, p_others int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision)
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
               extract(epoch from nexus.try_timestamptz(c.input ->> 'deadline') - clock_timestamp())::double precision
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
language plpgsql set search_path = pg_catalog, nexus as $$
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

-- schema/30_nexus/40_settle.sql

-- T3: end a batch of requests. Completion, publishing and the books are one transaction.

-- Each item: {run_id, step, attempt, outcome, result | details, error, delay, reply_to, calls}, where outcome is
--   success  publish result (docs/wire.md) and complete the run
--   failed   fail the run; details is laid over the failure that is published
--   retry    put it back for a later attempt, after delay seconds
--   release  put it back at once; counts no attempt
-- and calls are rows of nexus.attempts, booked whatever becomes of the rest.
-- Returns the runs that were settled; those that are missing had been taken from this worker.
create function nexus.settle(p_worker_id uuid, p_items jsonb[], p_notify boolean default true) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus as $$
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
  loop
    v_done := array(select nexus.settle_all(v_outcome, p_worker_id, v_runs, v_steps, v_attempts, v_items, p_notify));
    v_settled := v_settled || v_done;
  end loop;
  return query select unnest(v_settled);
end
$$;

create function nexus.settle_all(
  p_outcome text, p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_items jsonb[], p_notify boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_done uuid[];
begin
  if p_outcome = 'success' then
    v_done := array(select pgflow.complete_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select jsonb_build_object('route_llm', (i.item -> 'result') - '{response,message}'::text[])
            from unnest(p_items) with ordinality as i (item, n) order by i.n)));
    perform nexus.publish(
      array_agg(coalesce(i.item ->> 'reply_to', 'ai_results')),
      array_agg(case when i.attempt <= 1 then i.item -> 'result'
                     else nexus.count_calls(i.item -> 'result', i.run_id, i.attempt) end), p_notify)
    from unnest(p_runs, p_attempts, p_items) as i (run_id, attempt, item) where i.run_id = any (v_done)
    having count(*) > 0;
  elsif p_outcome = 'failed' then
    v_done := array(select pgflow.fail_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select i.item ->> 'error' from unnest(p_items) with ordinality as i (item, n) order by i.n),
      array(select nexus.count_calls(i.item -> 'details', i.run_id, i.attempt)
            from unnest(p_runs, p_attempts, p_items) with ordinality as i (run_id, attempt, item, n) order by i.n)));
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

-- track_metrics: every provider call into the books, also of requests that others have ended meanwhile.
create function nexus.book(p_worker_id uuid, p_items jsonb[]) returns void
language sql set search_path = pg_catalog, nexus as $$
  insert into nexus.attempts (
    request_id, attempt, call, instance_id, provider, model, complexity, task_type, agent_id, outcome, error, started_at,
    duration_ms, prompt_tokens, completion_tokens, cached_tokens, cost)
  select (i.item ->> 'run_id')::uuid, (i.item ->> 'attempt')::int, c.call, p_worker_id, c.provider, c.model,
         i.item ->> 'complexity', i.item ->> 'task_type', i.item ->> 'agent_id', c.outcome, c.error, c.started_at,
         c.duration_ms, coalesce(c.prompt_tokens, 0), coalesce(c.completion_tokens, 0), coalesce(c.cached_tokens, 0),
         c.cost
  from unnest(p_items) as i (item)
  cross join lateral jsonb_to_recordset(i.item -> 'calls') as c (
    call int, provider text, model text, outcome text, error text, started_at timestamptz, duration_ms int,
    prompt_tokens bigint, completion_tokens bigint, cached_tokens bigint, cost numeric)
  on conflict do nothing
$$;

-- A request that was taken up more than once: its result counts the provider calls of all those times.
create function nexus.count_calls(p_message jsonb, p_run_id uuid, p_attempt int) returns jsonb
language sql stable set search_path = pg_catalog, nexus as $$
  select case when p_attempt <= 1 then p_message else p_message || jsonb_build_object('attempts', (
    select count(*) from nexus.attempts a where a.request_id = p_run_id)) end
$$;

-- schema/40_nexus_api/10_api.sql

-- The few things that cross from one side to the other. SECURITY DEFINER: they may do what their caller's role
-- may not, so each does one thing and fixes its search_path.

create schema nexus_api;

-- Create a queue for results and let both sides use it.
create function nexus_api.create_queue(queue_name text) returns void
language plpgsql security definer set search_path = pg_catalog, nexus_api as $$
declare
  v_role text;
begin
  if queue_name is null or queue_name !~ '^[a-z0-9_]{1,47}$' then
    raise exception using errcode = 'PN002',
      message = format('queue name "%s": use 1 to 47 of a-z, 0-9 and _', queue_name);
  end if;
  if not exists (select from pgmq.meta m where m.queue_name = create_queue.queue_name) then
    perform pgmq.create(queue_name);
  end if;
  for v_role in select rolname from pg_roles where rolname in ('pgnexus_caller', 'pgnexus_nexus') loop
    execute format('grant select, insert, update, delete on pgmq.%I, pgmq.%I to %I',
                   'q_' || queue_name, 'a_' || queue_name, v_role);
  end loop;
end
$$;

-- Whether results may be wanted on a queue of this name: not on a request lane, nor on a flow's own queue.
create function nexus_api.takes_results(queue_name text) returns boolean
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select queue_name not like 'ai\_requests%'
     and not exists (select from pgflow.flows f where pgflow.queue_name(f.flow_slug) = takes_results.queue_name)
     and exists (select from pgmq.meta m where m.queue_name = takes_results.queue_name)
$$;

-- Put a message that was taken off a queue into that queue's archive, with the reason in its headers.
create function nexus_api.archive_message(p_queue text, p_message pgmq.message_record, p_reason text) returns void
language plpgsql security definer set search_path = pg_catalog, nexus_api as $$
begin
  execute format(
    'insert into pgmq.%I (msg_id, read_ct, enqueued_at, vt, message, headers) values ($1, $2, $3, $4, $5, $6)',
    pgmq.format_table_name(p_queue, 'a'))
  using p_message.msg_id, p_message.read_ct, p_message.enqueued_at, p_message.vt, p_message.message,
        coalesce(p_message.headers, '{}') || jsonb_build_object('reason', p_reason);
end
$$;

-- Cancel requests on the nexus side: runs that are under way fail as cancelled, requests that still wait are
-- answered as cancelled when they are taken up. Workers hear of it at once.
create function nexus_api.cancel(p_request_ids uuid[]) returns void
language plpgsql security definer set search_path = pg_catalog, nexus_api as $$
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

-- How many instances of the nexus side give signs of life. Here and below p_lease is for those that told no lease.
create function nexus_api.live_instances(p_lease interval) returns int
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select count(*)::int from pgflow.workers w
  where w.queue_name = 'llm_request_workflow' and w.stopped_at is null
    and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, p_lease)
$$;

-- The models that live instances know, and whether any of them can use it now.
create function nexus_api.available_models(p_lease interval)
returns table (provider text, model text, usable boolean, reason text)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select m.provider, m.model, bool_or(m.usable), case when not bool_or(m.usable) then min(m.reason) end
  from nexus.models m join pgflow.workers w on w.worker_id = m.instance_id
  where w.stopped_at is null and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, p_lease)
  group by m.provider, m.model
  order by 3 desc, 1, 2
$$;

-- Depth of every queue of ours, age of its oldest message in seconds, and how many of them may be read now.
create function nexus_api.queue_metrics()
returns table (queue text, depth bigint, ready bigint, oldest_seconds int, archived bigint)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
declare
  v_queue text;
begin
  for v_queue in
    select m.queue_name from pgmq.meta m order by m.queue_name
  loop
    return query execute format(
      'select %L::text, q.queue_length, q.queue_visible_length, q.oldest_msg_age_sec,
              (select count(*) from pgmq.%I) from pgmq.metrics(%1$L) q',
      v_queue, pgmq.format_table_name(v_queue, 'a'));
  end loop;
end
$$;

-- What the nexus side is doing: requests in flight and put back, and of the provider calls that ended in the last
-- p_window: how many a second, how many failed (and how often which provider failed how), and their latency.
create function nexus_api.activity(p_lease interval, p_window interval default '5 minutes')
returns table (in_flight bigint, waiting_for_retry bigint, instances int, calls bigint, calls_per_second double precision,
               failed_calls bigint, failures jsonb, p50_ms double precision, p95_ms double precision,
               p99_ms double precision)
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select (select count(*) from pgflow.step_tasks t where t.status = 'started' and t.flow_slug = 'llm_request_workflow'),
         (select count(*) from pgflow.step_tasks t where t.not_before is not null and t.flow_slug = 'llm_request_workflow'),
         nexus_api.live_instances(p_lease), count(*), count(*) / extract(epoch from p_window)::double precision,
         count(*) filter (where a.outcome <> 'success'),
         (select coalesce(jsonb_object_agg(f.name, f.calls), '{}')
          from (select b.provider || ' ' || b.outcome as name, count(*) as calls from nexus.attempts b
                where b.started_at > clock_timestamp() - p_window and b.outcome <> 'success' group by 1) f),
         percentile_cont(0.5) within group (order by a.duration_ms),
         percentile_cont(0.95) within group (order by a.duration_ms),
         percentile_cont(0.99) within group (order by a.duration_ms)
  from nexus.attempts a where a.started_at > clock_timestamp() - p_window
$$;

-- schema/50_setup/10_queues_and_flows.sql

-- What both sides need from the first moment: the queues, and the definition of LLMRequestWorkflow. How often it tries
-- is the nexus's setting max_attempts, of which this is the highest value.

select pgmq.create(q) from unnest('{ai_requests_interactive,ai_requests,ai_requests_batch,ai_results}'::text[]) as q;

select pgflow.create_flow('llm_request_workflow', max_attempts => 100, base_delay => 2, timeout => 3600);
select pgflow.add_step('llm_request_workflow', 'validate');
select pgflow.add_step('llm_request_workflow', 'route_llm', '{validate}');
select pgflow.add_step('llm_request_workflow', 'publish_result', '{route_llm}');
select pgflow.add_step('llm_request_workflow', 'track_metrics', '{publish_result}');
