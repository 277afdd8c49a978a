-- Completing tasks. Locks in the order that 34_failures tells.

-- Fail runs in which a map is to be made of what is no array; returns those runs. What else of them was finished by the
-- same tasks ends with them.
create or replace function pgflow.fail_type_violations(p_finished pgflow.step_key[], p_tasks pgflow.task_key[]) returns uuid[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_runs uuid[];
  v_steps text[];
  v_errors text[];
begin
  with parents as materialized (
    select k.run_id, k.step_slug, s.step_index from unnest(p_finished) k
    join pgflow.steps s on s.flow_slug = k.flow_slug and s.step_slug = k.step_slug and s.step_type <> 'map'
    where exists (
      select from pgflow.deps d join pgflow.steps c on c.flow_slug = d.flow_slug and c.step_slug = d.step_slug
      where d.flow_slug = k.flow_slug and d.dep_slug = k.step_slug and c.step_type = 'map')
  ), violations as materialized (
    select distinct on (k.run_id) k.run_id, k.step_slug,
           format('[TYPE_VIOLATION] Produced %s instead of array', coalesce(jsonb_typeof(t.output), 'null')) as error
    from parents k join pgflow.step_tasks t on t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = 0
    where jsonb_typeof(t.output) is distinct from 'array'
    order by k.run_id, k.step_index
  ), failed as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = clock_timestamp(), completed_at = null, error_message = v.error
    from violations v where t.run_id = v.run_id and t.step_slug = v.step_slug and t.task_index = 0
    returning v.run_id, v.step_slug, v.error
  )
  select array_agg(f.run_id), array_agg(f.step_slug), array_agg(f.error) into v_runs, v_steps, v_errors from failed f;
  if v_runs is not null then
    perform pgflow.fail_runs(v_runs, v_steps, v_errors, p_event_names_error => false);
    perform pgflow.void_tasks(array_agg(k))
    from unnest(p_tasks) k join unnest(p_finished) f on f.run_id = k.run_id and f.step_slug = k.step_slug
    where exists (select from unnest(v_runs, v_steps) as v (run_id, step_slug) where v.run_id = k.run_id)
      and not exists (select from unnest(v_runs, v_steps) as v (run_id, step_slug) where v.run_id = k.run_id and v.step_slug = k.step_slug);
  end if;
  return v_runs;
end
$$;

create or replace function pgflow.complete_steps(p_finished pgflow.step_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  with finished as materialized (
    select k.run_id, k.step_slug, s.step_type from unnest(p_finished) k
    join pgflow.steps s on s.flow_slug = k.flow_slug and s.step_slug = k.step_slug
  )
  update pgflow.step_states st
  set status = 'completed', completed_at = clock_timestamp(), remaining_tasks = 0, output = case
    when k.step_type = 'map' then (
      select jsonb_agg(t.output order by t.task_index) from pgflow.step_tasks t
      where t.run_id = k.run_id and t.step_slug = k.step_slug)
    else (
      select t.output from pgflow.step_tasks t
      where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = 0) end
  from finished k where st.run_id = k.run_id and st.step_slug = k.step_slug;
  perform pgflow.emit_steps('completed', p_finished);
end
$$;

-- The pure steps behind finished ones that were run in the same go, in their order: each a single step and the only
-- child of the one before it, which is its only dependency; none of them with a condition or before a map.
create or replace function pgflow.complete_followers(p_finished pgflow.step_key[], p_run_ids uuid[], p_step_slugs text[], p_then jsonb[])
returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_completed pgflow.step_key[];
begin
  with followers as materialized (
    select k.flow_slug, k.run_id, f.step ->> 'step' as step_slug, f.step -> 'output' as output
    from unnest(p_run_ids, p_step_slugs, p_then) as i (run_id, step_slug, steps)
    join unnest(p_finished) k on k.run_id = i.run_id and k.step_slug = i.step_slug
    cross join lateral jsonb_array_elements(i.steps) as f (step)
  ), completed as (
    update pgflow.step_states st
    set status = 'completed', started_at = clock_timestamp(), completed_at = clock_timestamp(), remaining_tasks = 0, remaining_deps = 0,
        output = f.output
    from followers f where st.run_id = f.run_id and st.step_slug = f.step_slug and st.status = 'created'
    returning st.flow_slug, st.run_id, st.step_slug, st.output
  ), tasks as (
    insert into pgflow.step_tasks as t (run_id, flow_slug, step_slug, status, attempts_count, started_at, completed_at, output, last_worker_id)
    select c.run_id, c.flow_slug, c.step_slug, 'completed', 1, now(), now(), c.output, null from completed c
    returning t.flow_slug, t.run_id, t.step_slug
  )
  select array_agg(row(t.*)::pgflow.step_key) into v_completed from tasks t;
  perform pgflow.emit_followers(v_completed);
  return v_completed;
end
$$;

-- Each started and completed before the one behind it.
create or replace function pgflow.emit_followers(p_steps pgflow.step_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_state pgflow.step_states;
begin
  if pgflow.has_realtime() then
    for v_state in
      select st.* from unnest(p_steps) k
      join pgflow.step_states st on st.run_id = k.run_id and st.step_slug = k.step_slug
      join pgflow.steps s on s.flow_slug = st.flow_slug and s.step_slug = st.step_slug
      order by st.run_id, s.step_index
    loop
      perform pgflow.emit_step('started', v_state);
      perform pgflow.emit_step('completed', v_state);
    end loop;
  end if;
end
$$;

-- Count ended tasks off their steps; returns the steps that are finished, and the tasks that ended too late.
create or replace function pgflow.count_down(p_tasks pgflow.task_key[], out finished pgflow.step_key[], out late pgflow.task_key[])
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_runs uuid[] := array(select distinct k.run_id from unnest(p_tasks) k);
  v_closed pgflow.step_key[];
  v_unfinished pgflow.step_key[];
  v_ended int[];
  v_live uuid[];
begin
  with counts as materialized (
    select k.run_id, k.step_slug, count(*)::int as ended from unnest(p_tasks) k group by 1, 2 order by 1, 2
  ), held as materialized (
    select row(st.flow_slug, st.run_id, st.step_slug)::pgflow.step_key as step, st.status, st.remaining_tasks, c.ended
    from counts c cross join lateral (
      select * from pgflow.step_states st where st.run_id = c.run_id and st.step_slug = c.step_slug for no key update) st
  )
  select array_agg(h.step) filter (where h.status = 'started' and h.remaining_tasks <= h.ended),
         array_agg(h.step) filter (where h.status = 'started' and h.remaining_tasks > h.ended),
         array_agg(h.ended) filter (where h.status = 'started' and h.remaining_tasks > h.ended),
         array_agg(h.step) filter (where h.status <> 'started')
  into finished, v_unfinished, v_ended, v_closed from held h;
  v_live := pgflow.hold_runs(v_runs, finished is not null);
  if v_closed is not null or cardinality(v_live) < cardinality(v_runs) then
    select array_agg(k) into late from unnest(p_tasks) k
    where k.run_id <> all (v_live)
       or exists (select from unnest(v_closed) c where c.run_id = k.run_id and c.step_slug = k.step_slug);
    finished := (select array_agg(k) from unnest(finished) k where k.run_id = any (v_live));
  end if;
  if v_unfinished is not null then
    update pgflow.step_states st set remaining_tasks = st.remaining_tasks - u.ended
    from (select k.run_id, k.step_slug, e.ended from unnest(v_unfinished) with ordinality as k (flow_slug, run_id, step_slug, n)
          join unnest(v_ended) with ordinality as e (ended, n) on e.n = k.n
          where k.run_id = any (v_live)) u
    where st.run_id = u.run_id and st.step_slug = u.step_slug;
  end if;
end
$$;

-- Complete claimed tasks, and all that follows from it. p_attempts is the fence: a task that was taken from this worker
-- is refused, and nothing of it changes; null: no fence. p_claim: up to so many tasks that become ready by this are
-- claimed for the worker at once. p_then: for each task null, or what was run in the same go behind it,
-- [{"step", "output"}, ...], see complete_followers.
create or replace function pgflow.complete_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_outputs jsonb[],
  p_claim int default 0, p_handlers text[] default null, p_notify boolean default true, p_then jsonb[] default null
) returns setof pgflow.claimed_task
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
  v_done pgflow.task_key[];
  v_late pgflow.task_key[];
  v_finished pgflow.step_key[];
  v_violated uuid[];
begin
  with live as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_task_indexes, p_attempts, p_outputs) as i (run_id, step_slug, task_index, attempt, output)
    join pgflow.runs r on r.run_id = i.run_id and r.status = 'started'
    join pgflow.step_states st on st.run_id = i.run_id and st.step_slug = i.step_slug and st.status = 'started'
    order by i.run_id, i.step_slug, i.task_index
  ), ended as (
    update pgflow.step_tasks t
    set status = 'completed', completed_at = clock_timestamp(), output = i.output, deferred_until = null
    from live i
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
      and case t.status when 'started' then coalesce(t.attempts_count = i.attempt, true)
                                        and (p_worker_id is null or t.last_worker_id = p_worker_id) end
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
  )
  select array_agg(row(e.*)::pgflow.task_key) into v_done from ended e;
  if v_done is not null then
    select c.finished, c.late into v_finished, v_late from pgflow.count_down(v_done) c;
    if v_late is not null then
      perform pgflow.void_tasks(v_late);
      v_done := (select array_agg(k) from unnest(v_done) k where k <> all (v_late));
    end if;
    perform pgflow.archive_messages(v_done);
    if v_finished is not null and pgflow.has_maps(v_finished) then
      v_violated := pgflow.fail_type_violations(v_finished, v_done);
      if v_violated is not null then
        v_finished := (select array_agg(k) from unnest(v_finished) k where k.run_id <> all (v_violated));
      end if;
    end if;
    if v_finished is not null then
      perform pgflow.complete_steps(v_finished);
      if p_then is not null then
        v_finished := v_finished || pgflow.complete_followers(v_finished, p_run_ids, p_step_slugs, p_then);
      end if;
      return query select a.* from pgflow.advance(v_finished, null, p_worker_id, p_claim, p_handlers) a;
    end if;
    if p_notify then
      perform pgflow.notify_runs(array_agg(k.run_id)) from unnest(v_done) k;
    end if;
  end if;
  if cardinality(v_done) is distinct from cardinality(p_run_ids) then
    perform pgflow.void_refused(p_run_ids, p_step_slugs, p_task_indexes);
    return query
      select 'refused', null::text, i.run_id, i.step_slug, i.task_index, i.attempt, null::jsonb, null::jsonb, null::double precision
      from unnest(p_run_ids, p_step_slugs, p_task_indexes, p_attempts) as i (run_id, step_slug, task_index, attempt)
      where not exists (select from unnest(v_done) k
                        where k.run_id = i.run_id and k.step_slug = i.step_slug and k.task_index = i.task_index);
  end if;
end
$$;

-- Complete one task, whoever holds it; returns its row in any case. Where its step is not under way only its message
-- goes.
create or replace function pgflow.complete_task(run_id uuid, step_slug text, task_index int, output jsonb)
returns setof pgflow.step_tasks
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  if pgflow.may_end(complete_task.run_id, complete_task.step_slug, complete_task.task_index) then
    perform pgflow.complete_tasks(null, array[complete_task.run_id], array[complete_task.step_slug], array[complete_task.task_index],
                                  array[null::int], array[complete_task.output]);
  end if;
  return query select t.* from pgflow.step_tasks t
    where t.run_id = complete_task.run_id and t.step_slug = complete_task.step_slug and t.task_index = complete_task.task_index;
end
$$;

-- Whether a task's run and step are under way. Where only the step is not, its message goes.
create or replace function pgflow.may_end(p_run_id uuid, p_step_slug text, p_task_index int) returns boolean
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_run text;
  v_step text;
begin
  select r.status, st.status into v_run, v_step
  from pgflow.runs r join pgflow.step_states st on st.run_id = r.run_id
  where r.run_id = p_run_id and st.step_slug = p_step_slug;
  if v_run <> 'failed' and v_step <> 'started' then
    perform pgflow.archive_messages(array_agg(row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key))
    from pgflow.step_tasks t
    where t.run_id = p_run_id and t.step_slug = p_step_slug and t.task_index = p_task_index;
  end if;
  return coalesce(v_run = 'started' and v_step = 'started', false);
end
$$;
