-- Failing and releasing tasks. Locks in the order that 34_failures tells.

-- Fail claimed tasks: back to the queue after a delay (null: the step's backoff), or for good, where no attempt is left
-- or p_final says so; then as the step's when_exhausted says. Fences as in complete_tasks.
create or replace function pgflow.fail_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_errors text[],
  p_final boolean[], p_delays double precision[], p_notify boolean default true
) returns table (outcome text, run_id uuid, step_slug text, task_index int)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_all pgflow.task_key[];
  v_delays double precision[];
  v_back pgflow.task_key[];
  v_lost pgflow.task_key[];
  v_errors text[];
  v_states pgflow.step_states[];
  v_live uuid[];
  v_open pgflow.task_key[];
begin
  with live as materialized (
    select i.*, st.flow_slug
    from unnest(p_run_ids, p_step_slugs, p_task_indexes, p_attempts, p_errors, p_final, p_delays)
      as i (run_id, step_slug, task_index, attempt, error, final, delay)
    join pgflow.runs r on r.run_id = i.run_id and r.status = 'started'
    join pgflow.step_states st on st.run_id = i.run_id and st.step_slug = i.step_slug and st.status = 'started'
  ), judged as materialized (
    select i.*, coalesce(i.final, false) as is_final, coalesce(s.opt_max_attempts, f.opt_max_attempts) as max_attempts,
           coalesce(s.opt_base_delay, f.opt_base_delay) as base_delay
    from live i
    join pgflow.steps s on s.flow_slug = i.flow_slug and s.step_slug = i.step_slug
    join pgflow.flows f on f.flow_slug = i.flow_slug
    order by i.run_id, i.step_slug, i.task_index
  ), ended as (
    update pgflow.step_tasks t
    set status = case when j.is_final or t.attempts_count >= j.max_attempts then 'failed' else 'queued' end,
        failed_at = case when j.is_final or t.attempts_count >= j.max_attempts then clock_timestamp() end,
        started_at = case when j.is_final or t.attempts_count >= j.max_attempts then t.started_at end,
        error_message = j.error, deferred_until = null
    from judged j
    where t.run_id = j.run_id and t.step_slug = j.step_slug and t.task_index = j.task_index
      and case t.status when 'started' then coalesce(t.attempts_count = j.attempt, true)
                                        and (p_worker_id is null or t.last_worker_id = p_worker_id) end
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task, t.status, j.error,
              coalesce(j.delay, pgflow.calculate_retry_delay(j.base_delay, t.attempts_count)) as delay
  )
  select array_agg(e.task), array_agg(e.task) filter (where e.status = 'queued'), array_agg(e.delay) filter (where e.status = 'queued'),
         array_agg(e.task) filter (where e.status = 'failed'), array_agg(e.error) filter (where e.status = 'failed')
  into v_all, v_back, v_delays, v_lost, v_errors from ended e;
  if v_all is not null then
    if v_lost is not null then
      select array_agg(h) into v_states from pgflow.hold_steps(v_lost) h;
    end if;
    v_live := pgflow.hold_runs(array(select distinct k.run_id from unnest(v_all) k), v_lost is not null);
    v_open := pgflow.keep_live(v_back, v_live);
    perform pgflow.queue_again(array_agg(b.task), array_agg(b.delay))
    from (select row(k.flow_slug, k.run_id, k.step_slug, k.task_index, k.message_id)::pgflow.task_key as task, d.delay
          from unnest(v_back) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
          join unnest(v_delays) with ordinality as d (delay, n) on d.n = k.n) b
    where b.task = any (v_open)
    having count(*) > 0;
    if v_lost is not null then
      perform pgflow.keep_live(v_lost, v_live);
      perform pgflow.archive_messages(v_lost);
      perform pgflow.end_exhausted(v_lost, v_errors, v_states, v_live);
    end if;
    if p_notify then
      perform pgflow.notify_runs(array_agg(k.run_id)) from unnest(v_all) k;
    end if;
  end if;
  if cardinality(v_all) is distinct from cardinality(p_run_ids) then
    perform pgflow.void_refused(p_run_ids, p_step_slugs, p_task_indexes);
  end if;
  return query
    select case when l.run_id is not null then 'failed' when b.run_id is not null then 'retried' else 'refused' end,
           i.run_id, i.step_slug, i.task_index
    from unnest(p_run_ids, p_step_slugs, p_task_indexes) as i (run_id, step_slug, task_index)
    left join unnest(v_lost) l on l.run_id = i.run_id and l.step_slug = i.step_slug and l.task_index = i.task_index
    left join unnest(v_open) b on b.run_id = i.run_id and b.step_slug = i.step_slug and b.task_index = i.task_index;
end
$$;

-- Queued tasks wait for their next attempt: as an invisible message where they still have one, else in their own row,
-- so that queues hold only what may run now.
create or replace function pgflow.queue_again(p_tasks pgflow.task_key[], p_delays double precision[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_hidden pgflow.task_key[];
  v_now pgflow.task_key[];
begin
  v_hidden := pgflow.hide_messages(p_tasks, p_delays);
  update pgflow.step_tasks t set message_id = null, not_before = case when d.delay > 0 then clock_timestamp() + make_interval(secs => d.delay) end
  from unnest(p_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
  join unnest(p_delays) with ordinality as d (delay, n) on d.n = k.n
  where not exists (select from unnest(v_hidden) h where h.flow_slug = k.flow_slug and h.message_id = k.message_id)
    and t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  select array_agg(row(t.flow_slug, t.run_id, t.step_slug, t.task_index, null)::pgflow.task_key) into v_now
  from unnest(p_tasks) k
  join pgflow.step_tasks t on t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index
  where t.message_id is null and t.not_before is null;
  perform pgflow.send_queued(v_now);
end
$$;

-- Make the tasks' messages invisible for their delays; returns the tasks whose messages were still there.
create or replace function pgflow.hide_messages(p_tasks pgflow.task_key[], p_delays double precision[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_flow text;
  v_ids bigint[];
  v_seconds int[];
  v_hidden pgflow.task_key[];
begin
  for v_flow, v_ids, v_seconds in
    select k.flow_slug, array_agg(k.message_id), array_agg(least(ceil(d.delay), 2147483647)::int)
    from unnest(p_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
    join unnest(p_delays) with ordinality as d (delay, n) on d.n = k.n
    where k.message_id is not null group by 1
  loop
    v_hidden := v_hidden || (
      select array_agg(row(v_flow, pgflow.message_run_id(s.message), s.message ->> 'step_slug', pgflow.message_task_index(s.message), s.msg_id)::pgflow.task_key)
      from pgflow.set_vt_batch(pgflow.queue_of(v_flow), v_ids, v_seconds) s);
  end loop;
  return v_hidden;
end
$$;

-- What becomes of the steps and runs whose tasks have failed for good.
create or replace function pgflow.end_exhausted(
  p_tasks pgflow.task_key[], p_errors text[], p_states pgflow.step_states[], p_live uuid[]
) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_runs uuid[];
  v_culprits text[];
  v_errors text[];
  v_skips pgflow.step_key[];
  v_skip_errors text[];
  v_cascades pgflow.step_key[];
  v_cascade_errors text[];
  v_more pgflow.step_key[];
begin
  with lost as (
    select distinct on (k.run_id, k.step_slug) k.run_id, k.step_slug, e.error, s.when_exhausted, s.step_index,
           row(k.flow_slug, k.run_id, k.step_slug)::pgflow.step_key as step
    from unnest(p_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
    join unnest(p_errors) with ordinality as e (error, n) on e.n = k.n
    join unnest(p_states) st on st.run_id = k.run_id and st.step_slug = k.step_slug and st.status = 'started'
    join pgflow.steps s on s.flow_slug = k.flow_slug and s.step_slug = k.step_slug
    where k.run_id = any (p_live)
    order by k.run_id, k.step_slug, k.task_index
  ), fails as (
    select distinct on (l.run_id) l.* from lost l where l.when_exhausted = 'fail' order by l.run_id, l.step_index
  ), skips as (
    select l.* from lost l where l.run_id not in (select f.run_id from fails f)
  )
  select (select array_agg(f.run_id order by f.run_id) from fails f), (select array_agg(f.step_slug order by f.run_id) from fails f),
         (select array_agg(f.error order by f.run_id) from fails f),
         array_agg(k.step) filter (where k.when_exhausted = 'skip'), array_agg(k.error) filter (where k.when_exhausted = 'skip'),
         array_agg(k.step) filter (where k.when_exhausted = 'skip-cascade'), array_agg(k.error) filter (where k.when_exhausted = 'skip-cascade')
  into v_runs, v_culprits, v_errors, v_skips, v_skip_errors, v_cascades, v_cascade_errors
  from skips k;
  if v_runs is not null then
    perform pgflow.fail_runs(v_runs, v_culprits, v_errors);
  end if;
  if v_skips is not null then
    v_skips := pgflow.skip_steps(v_skips, 'handler_failed', v_skip_errors);
  end if;
  if v_cascades is not null then
    v_more := pgflow.skip_cascade(v_cascades, 'handler_failed', v_cascade_errors);
    perform pgflow.count_off(v_more) where v_more is not null;
  end if;
  if v_skips is not null then
    perform pgflow.advance(v_skips);
  end if;
end
$$;

-- Fail one task, whoever holds it; returns its row in any case.
create or replace function pgflow.fail_task(run_id uuid, step_slug text, task_index int, error_message text)
returns setof pgflow.step_tasks
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  if pgflow.may_end(fail_task.run_id, fail_task.step_slug, fail_task.task_index) then
    perform pgflow.fail_tasks(null, array[fail_task.run_id], array[fail_task.step_slug], array[fail_task.task_index],
                              array[null::int], array[fail_task.error_message], array[false], array[null::double precision]);
  else  -- in a run that has failed, its task fails, too
    perform pgflow.void_started(fail_task.run_id, fail_task.step_slug, fail_task.task_index, fail_task.error_message);
  end if;
  return query select t.* from pgflow.step_tasks t
    where t.run_id = fail_task.run_id and t.step_slug = fail_task.step_slug and t.task_index = fail_task.task_index;
end
$$;

create or replace function pgflow.void_started(p_run_id uuid, p_step_slug text, p_task_index int, p_error text) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_ended pgflow.task_key[];
begin
  with ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = clock_timestamp(), error_message = p_error, deferred_until = null
    from pgflow.runs r
    where r.run_id = p_run_id and r.status = 'failed' and t.run_id = r.run_id and t.step_slug = p_step_slug
      and t.task_index = p_task_index and t.status = 'started'
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
  )
  select array_agg(row(e.*)::pgflow.task_key) into v_ended from ended e;
  perform pgflow.archive_messages(v_ended);
end
$$;

-- Give claimed tasks back, to be claimed again after a delay in seconds; no attempt is counted. Returns those that were
-- this worker's.
create or replace function pgflow.release_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_delays double precision[]
) returns table (run_id uuid, step_slug text, task_index int)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_back pgflow.task_key[];
  v_delays double precision[];
  v_open pgflow.task_key[];
begin
  with named as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_task_indexes, p_attempts, p_delays) as i (run_id, step_slug, task_index, attempt, delay)
    order by i.run_id, i.step_slug, i.task_index
  ), back as (
    update pgflow.step_tasks t
    set status = 'queued', started_at = null, attempts_count = t.attempts_count - 1
    from named i where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
      and case t.status when 'started' then coalesce(t.attempts_count = i.attempt, true)
                                        and (p_worker_id is null or t.last_worker_id = p_worker_id) end
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task, coalesce(i.delay, 0) as delay
  )
  select array_agg(b.task), array_agg(b.delay) into v_back, v_delays from back b;
  if cardinality(v_back) is distinct from cardinality(p_run_ids) then
    perform pgflow.void_refused(p_run_ids, p_step_slugs, p_task_indexes);
  end if;
  if v_back is null then
    return;
  end if;
  v_open := pgflow.keep_open(v_back);
  perform pgflow.queue_again(array_agg(b.task), array_agg(b.delay))
  from (select row(k.flow_slug, k.run_id, k.step_slug, k.task_index, k.message_id)::pgflow.task_key as task, d.delay
        from unnest(v_back) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
        join unnest(v_delays) with ordinality as d (delay, n) on d.n = k.n) b
  where b.task = any (v_open) having count(*) > 0;
  return query select k.run_id, k.step_slug, k.task_index from unnest(v_back) k;
end
$$;
