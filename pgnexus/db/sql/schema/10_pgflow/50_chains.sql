-- Chains: flows whose steps are single and follow one another. A worker takes the first step it finds and goes
-- on to the end; each function here does a whole batch of runs in one pass.
--
-- The row of the claimed task is fence and lock: whoever ends a task (completes, fails, releases, recovers,
-- cancels) first changes that row where it is still started by this worker in this attempt, then the step
-- states, then the run. Everybody locks in that order, and batches in the order of their runs. The fence is written as a CASE, so that the row is found by
-- its key: the index of a worker's started tasks is full of those it has ended.

-- Start runs and claim their first task for the worker, without a detour through the flow's queue. A run_id
-- that was used before is left out: the same message, delivered twice, starts nothing twice. Give the runs in the order of their ids.
create or replace function pgflow.start_claimed(p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_inputs jsonb[])
returns table (run_id uuid, step_slug text, attempt int)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
#variable_conflict use_column
declare
  v_first text;
  v_count int;
begin
  select count(*)::int, (array_agg(s.step_slug order by s.step_index))[1] into v_count, v_first
  from pgflow.steps s where s.flow_slug = p_flow_slug;
  return query
  with started as (
    insert into pgflow.runs (run_id, flow_slug, input, remaining_steps)
    select i.id, p_flow_slug, i.input, v_count
    from unnest(p_run_ids, p_inputs) as i (id, input)
    on conflict on constraint runs_pkey do nothing
    returning runs.run_id
  )
  insert into pgflow.step_tasks (run_id, flow_slug, step_slug, status, attempts_count, started_at, last_worker_id)
  select s.run_id, p_flow_slug, v_first, 'started', 1, now(), p_worker_id from started s
  returning step_tasks.run_id, v_first, 1;
end
$$;

-- Claim tasks from the flow's queue: those that were retried, released or recovered. Their messages are
-- deleted at once, since a lease is the worker's sign of life, not a message's visibility. In two statements: a message may be
-- committed while the first one begins, and only the second is sure to see the task as the message's sender left it.
create or replace function pgflow.claim_chains(p_flow_slug text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
    cross join lateral (
      select r.input from pgflow.runs r where r.run_id = popped.run_id and r.status = 'started' limit 1
    ) as live
    where t.run_id = popped.run_id and t.step_slug = popped.step_slug and t.task_index = 0
      and t.status = 'queued' and t.not_before is null
    returning t.run_id, t.step_slug, t.attempts_count, live.input
  )
  select c.run_id, c.step_slug, c.attempts_count, c.input from claimed c;
end
$$;

-- Complete the claimed tasks and every step behind them, and with that their runs. The task of the first step stands
-- for the chain; the others have no task of their own, and their states are those of the run (see untold_states). p_outputs: one
-- object a run, {step: output}, null where no step has one; only those of the claimed and of the last step are kept. Returns the runs that were completed;
-- those that are missing had been taken from this worker.
create or replace function pgflow.complete_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[], p_outputs jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_done uuid[];
  v_outputs jsonb[];
begin
  with live as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_attempts, p_outputs) as i (run_id, step_slug, attempt, outputs)
    cross join lateral (
      select from pgflow.runs r where r.run_id = i.run_id and r.status = 'started' limit 1  -- by its key, whatever the statistics say
    ) as live
    order by i.run_id
  ), ended as (
    update pgflow.step_tasks t
    set status = 'completed', completed_at = now(), output = i.outputs -> i.step_slug
    from live i
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id, i.outputs
  )
  select array_agg(e.run_id), array_agg(e.outputs) into v_done, v_outputs from ended e;
  if v_done is null then
    return;
  end if;
  update pgflow.step_states st  -- of runs that an earlier version started, or that somebody has looked after
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
-- (release). What waits longer than a moment waits in step_tasks, not as an invisible message on the queue. A task whose
-- run has ended is not put back: nobody would want its answer.
create or replace function pgflow.return_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[],
  p_delays double precision[], p_errors text[], p_counts boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_done uuid[];
  v_now pgflow.task_key[];
begin
  with named as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_attempts, p_delays, p_errors)
      as i (run_id, step_slug, attempt, delay, error)
    cross join lateral (
      select from pgflow.runs r where r.run_id = i.run_id and r.status = 'started' limit 1
    ) as live
    order by i.run_id
  ), back as (
    update pgflow.step_tasks t
    set status = 'queued', started_at = null, queued_at = now(), error_message = coalesce(i.error, t.error_message),
        attempts_count = t.attempts_count - case when p_counts then 0 else 1 end,
        not_before = case when i.delay > 0 then now() + make_interval(secs => i.delay) end
    from named i
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.not_before
  )
  select array_agg(b.run_id),
         array_agg(row(b.flow_slug, b.run_id, b.step_slug, b.task_index, null)::pgflow.task_key) filter (where b.not_before is null)
  into v_done, v_now from back b;
  perform pgflow.send_queued(v_now);
  return query select unnest(v_done);
end
$$;

-- Fail claimed tasks for good, and with them their steps and runs. p_details is kept as the failed task's
-- output, for whoever publishes the failure.
create or replace function pgflow.fail_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[],
  p_errors text[], p_details jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_done uuid[];
  v_steps text[];
  v_errors text[];
begin
  with named as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_attempts, p_errors, p_details)
      as i (run_id, step_slug, attempt, error, details)
    order by i.run_id
  ), ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = now(), error_message = i.error, output = i.details
    from named i
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id, t.step_slug, i.error
  )
  select array_agg(e.run_id), array_agg(e.step_slug), array_agg(e.error) into v_done, v_steps, v_errors from ended e;
  if v_done is not null then
    perform pgflow.tell_states(v_done);
    perform pgflow.fail_runs(v_done, v_steps, v_errors);
  end if;
  return query select unnest(v_done);
end
$$;

-- Cancel started chains: their open tasks fail, and with them the runs. Returns those that were cancelled.
create or replace function pgflow.cancel_runs(p_run_ids uuid[]) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_done uuid[];
begin
  with open as materialized (
    select t.run_id, t.step_slug, t.task_index from pgflow.step_tasks t
    where t.run_id = any (p_run_ids) and t.status in ('queued', 'started')
    order by t.run_id, t.step_slug, t.task_index for no key update
  ), ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = now(), error_message = 'cancelled', not_before = null
    from open o where t.run_id = o.run_id and t.step_slug = o.step_slug and t.task_index = o.task_index
    returning t.run_id
  )
  select array_agg(distinct e.run_id) into v_done from ended e;
  if v_done is not null then
    perform pgflow.tell_states(v_done);
    perform pgflow.fail_runs(v_done, array_fill(null::text, array[cardinality(v_done)]),
                             array_fill('cancelled'::text, array[cardinality(v_done)]), p_cancelled => true);
  end if;
  return query select unnest(v_done);
end
$$;
