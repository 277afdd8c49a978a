-- What the end of a step brings about: its children come nearer, are skipped, completed without a task, or started;
-- and the run may be complete. All of it for a batch of steps in one pass. Whoever calls this holds the runs' rows
-- exclusively.

create or replace function pgflow.has_maps(p_steps pgflow.step_key[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return exists (select from pgflow.steps s where s.step_type = 'map' and s.flow_slug in (select k.flow_slug from unnest(p_steps) k));
end
$$;

create or replace function pgflow.has_conditions(p_steps pgflow.step_key[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return exists (select from pgflow.steps s
                 where (s.required_input_pattern is not null or s.forbidden_input_pattern is not null)
                   and s.flow_slug in (select k.flow_slug from unnest(p_steps) k));
end
$$;

-- Count steps that ended off their children; a map child learns its number of tasks from its only parent. Returns the
-- children that wait for nothing any more.
create or replace function pgflow.release_children(p_ended pgflow.step_key[]) returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_released pgflow.step_key[];
begin
  with children as (
    select k.run_id, d.step_slug, count(*)::int as ended,
           max(case when c.step_type = 'map' then pgflow.count_elements(k.flow_slug, k.run_id, k.step_slug) end) as tasks
    from unnest(p_ended) k
    join pgflow.deps d on d.flow_slug = k.flow_slug and d.dep_slug = k.step_slug
    join pgflow.steps c on c.flow_slug = d.flow_slug and c.step_slug = d.step_slug
    group by k.run_id, d.step_slug
  ), released as (
    update pgflow.step_states st
    set remaining_deps = st.remaining_deps - c.ended, initial_tasks = coalesce(st.initial_tasks, c.tasks)
    from children c
    where st.run_id = c.run_id and st.step_slug = c.step_slug and st.status = 'created'
    returning st.flow_slug, st.run_id, st.step_slug, st.remaining_deps
  )
  select array_agg(row(r.flow_slug, r.run_id, r.step_slug)::pgflow.step_key) filter (where r.remaining_deps = 0)
  into v_released from released r;
  return v_released;
end
$$;

-- How many elements an ended step gives to a map child: none if it was skipped.
create or replace function pgflow.count_elements(p_flow_slug text, p_run_id uuid, p_step_slug text) returns int
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return (
    select case when st.status <> 'completed' then 0
                when s.step_type = 'map' then st.initial_tasks
                when jsonb_typeof(st.output) = 'array' then jsonb_array_length(st.output)
                else 0 end
    from pgflow.step_states st join pgflow.steps s on s.flow_slug = p_flow_slug and s.step_slug = st.step_slug
    where st.run_id = p_run_id and st.step_slug = p_step_slug);
end
$$;

-- What a single step is given, and what its conditions look at: the run's input for a root's condition, else the
-- outputs of its completed dependencies.
create or replace function pgflow.dependency_outputs(p_flow_slug text, p_run_id uuid, p_step_slug text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return (
    select coalesce(jsonb_object_agg(d.dep_slug, coalesce(st.output, 'null')), '{}')
    from pgflow.deps d join pgflow.step_states st on st.run_id = p_run_id and st.step_slug = d.dep_slug
    where d.flow_slug = p_flow_slug and d.step_slug = p_step_slug and st.status = 'completed');
end
$$;

-- Resolve the conditions of steps that wait for nothing: where one is unmet its run fails, or it is skipped, alone or
-- with all that is downstream. Returns what was skipped; `releases` where children still have to be told.
create or replace function pgflow.resolve_conditions(p_ready pgflow.step_key[])
returns table (step pgflow.step_key, releases boolean)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_fails pgflow.step_key[];
  v_skips pgflow.step_key[];
  v_cascades pgflow.step_key[];
begin
  with live as materialized (
    select k.*, r.input from (select distinct * from unnest(p_ready)) k
    join pgflow.runs r on r.run_id = k.run_id and r.status = 'started'
  ), ready as materialized (
    select k.* from live k join pgflow.step_states st on st.run_id = k.run_id and st.step_slug = k.step_slug
      and st.status = 'created' and st.remaining_deps = 0
  ), unmet as (
    select row(k.flow_slug, k.run_id, k.step_slug)::pgflow.step_key as step, k.run_id, s.when_unmet, s.step_index
    from ready k
    join pgflow.steps s on s.flow_slug = k.flow_slug and s.step_slug = k.step_slug
      and (s.required_input_pattern is not null or s.forbidden_input_pattern is not null)
    cross join lateral (
      select case when s.deps_count = 0 then k.input
                  else pgflow.dependency_outputs(k.flow_slug, k.run_id, k.step_slug) end as input) i
    where not (coalesce(i.input @> s.required_input_pattern, true)
               and not coalesce(i.input @> s.forbidden_input_pattern, false))
  ), fails as (
    select distinct on (u.run_id) u.run_id, u.step from unmet u where u.when_unmet = 'fail' order by u.run_id, u.step_index
  )
  select (select array_agg(f.step order by f.run_id) from fails f),
         array_agg(u.step) filter (where u.when_unmet = 'skip' and u.run_id not in (select f.run_id from fails f)),
         array_agg(u.step) filter (where u.when_unmet = 'skip-cascade' and u.run_id not in (select f.run_id from fails f))
  into v_fails, v_skips, v_cascades
  from unmet u;
  if v_fails is not null then
    perform pgflow.fail_runs(array_agg(f.run_id), array_agg(f.step_slug), array_agg('Condition not met'::text)) from unnest(v_fails) f;
  end if;
  if v_skips is not null then
    return query select row(k.*)::pgflow.step_key, true from unnest(pgflow.skip_steps(v_skips, 'condition_unmet')) k;
  end if;
  if v_cascades is not null then
    return query select row(k.*)::pgflow.step_key, false from unnest(pgflow.skip_cascade(v_cascades, 'condition_unmet')) k;
  end if;
end
$$;

-- Complete steps that wait for nothing and have no task: maps over an empty array. Returns them.
create or replace function pgflow.complete_taskless(p_ready pgflow.step_key[]) returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_completed pgflow.step_key[];
begin
  with live as materialized (
    select k.* from unnest(p_ready) k join pgflow.runs r on r.run_id = k.run_id and r.status = 'started'
  ), completed as (
    update pgflow.step_states st
    set status = 'completed', started_at = clock_timestamp(), completed_at = clock_timestamp(), remaining_tasks = 0, output = '[]'
    from live k
    where st.run_id = k.run_id and st.step_slug = k.step_slug and st.status = 'created' and st.remaining_deps = 0
      and st.initial_tasks = 0
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(c.*)::pgflow.step_key) into v_completed from completed c;
  perform pgflow.emit_steps('completed', v_completed);
  return v_completed;
end
$$;

-- The elements of a map step's tasks. Where its parent is a map, the parent's tasks have them already.
create or replace function pgflow.map_elements(p_flow_slug text, p_run_id uuid, p_step_slug text)
returns table (task_index int, element jsonb)
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_parent text;
  v_parent_type text;
  v_count int;
  v_array jsonb;
begin
  select st.initial_tasks into v_count from pgflow.step_states st where st.run_id = p_run_id and st.step_slug = p_step_slug;
  select d.dep_slug, s.step_type into v_parent, v_parent_type
  from pgflow.deps d join pgflow.steps s on s.flow_slug = d.flow_slug and s.step_slug = d.dep_slug
  where d.flow_slug = p_flow_slug and d.step_slug = p_step_slug;
  if v_parent_type = 'map' then
    return query select n, null::jsonb from generate_series(0, v_count - 1) as n;
    return;
  elsif v_parent is null then
    select r.input into v_array from pgflow.runs r where r.run_id = p_run_id;
  else
    select st.output into v_array from pgflow.step_states st where st.run_id = p_run_id and st.step_slug = v_parent;
  end if;
  return query
    select n, e.value from generate_series(0, v_count - 1) as n
    left join jsonb_array_elements(v_array) with ordinality as e (value, ordinal) on e.ordinal = n + 1 order by n;
end
$$;

-- Start steps that wait for nothing: their tasks are made, the first p_claim of them claimed for the worker at once,
-- the others sent to their queue.
create or replace function pgflow.start_steps(
  p_ready pgflow.step_key[], p_worker_id uuid default null, p_claim int default 0, p_handlers text[] default null
) returns setof pgflow.claimed_task
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_started pgflow.step_key[];
begin
  with live as materialized (
    select k.* from (select distinct * from unnest(p_ready)) k join pgflow.runs r on r.run_id = k.run_id and r.status = 'started'
  ), started as (
    update pgflow.step_states st
    set status = 'started', started_at = clock_timestamp(), remaining_tasks = st.initial_tasks
    from live k
    where st.run_id = k.run_id and st.step_slug = k.step_slug and st.status = 'created' and st.remaining_deps = 0
      and st.initial_tasks > 0
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(s.*)::pgflow.step_key) into v_started from started s;
  if v_started is not null then
    perform pgflow.emit_steps('started', v_started);
    return query select c.* from pgflow.make_tasks(v_started, p_worker_id, p_claim, p_handlers) c;
  end if;
end
$$;

create or replace function pgflow.make_tasks(
  p_steps pgflow.step_key[], p_worker_id uuid, p_claim int, p_handlers text[]
) returns setof pgflow.claimed_task
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_left int := coalesce(p_claim, 0);
  v_delay int;
  v_may_claim boolean;
  v_singles pgflow.step_key[];
  v_maps pgflow.step_key[];
  v_claimed pgflow.task_key[] := '{}';
  v_tasks pgflow.task_key[];
  v_elements jsonb[];
begin
  for v_delay, v_may_claim, v_singles, v_maps in
    select coalesce(s.opt_start_delay, 0),
           coalesce(s.opt_start_delay, 0) = 0 and f.paused_at is null and (s.handler is null or s.handler = any (p_handlers)),
           array_agg(row(k.*)::pgflow.step_key) filter (where s.step_type <> 'map'),
           array_agg(row(k.*)::pgflow.step_key) filter (where s.step_type = 'map')
    from unnest(p_steps) k
    join pgflow.steps s on s.flow_slug = k.flow_slug and s.step_slug = k.step_slug
    join pgflow.flows f on f.flow_slug = k.flow_slug
    group by k.flow_slug, 1, 2
  loop
    select array_agg(row(t.flow_slug, t.run_id, t.step_slug, t.task_index, null)::pgflow.task_key order by t.n), array_agg(t.element order by t.n)
    into v_tasks, v_elements
    from (
      select a.*, row_number() over () as n from (
        select k.flow_slug, k.run_id, k.step_slug, 0 as task_index, null::jsonb as element from unnest(v_singles) k
        union all
        select k.flow_slug, k.run_id, k.step_slug, e.task_index, e.element
        from unnest(v_maps) k cross join lateral pgflow.map_elements(k.flow_slug, k.run_id, k.step_slug) e
      ) a
    ) t;
    if v_may_claim and v_left > 0 then
      perform pgflow.insert_tasks(v_tasks[:v_left], v_elements[:v_left], p_worker_id);
      v_claimed := v_claimed || v_tasks[:v_left];
      v_elements := v_elements[v_left + 1:];
      v_tasks := v_tasks[v_left + 1:];
      v_left := p_claim - cardinality(v_claimed);
    end if;
    if cardinality(v_tasks) > 0 then
      perform pgflow.insert_tasks(pgflow.send_messages(v_tasks, v_delay), v_elements, null);
    end if;
  end loop;
  if cardinality(v_claimed) > 0 then
    return query select d.* from pgflow.describe_tasks(v_claimed) d;
  end if;
end
$$;

-- Queued where there is no worker, else claimed by it.
create or replace function pgflow.insert_tasks(p_tasks pgflow.task_key[], p_elements jsonb[], p_worker_id uuid) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  insert into pgflow.step_tasks (run_id, flow_slug, step_slug, task_index, message_id, input, status, attempts_count, started_at, last_worker_id)
  select k.run_id, k.flow_slug, k.step_slug, k.task_index, k.message_id, e.element,
         case when p_worker_id is null then 'queued' else 'started' end,
         case when p_worker_id is null then 0 else 1 end,
         case when p_worker_id is not null then now() end, p_worker_id
  from unnest(p_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
  join unnest(p_elements) with ordinality as e (element, n) on e.n = k.n;
end
$$;

-- The last part: runs get their counts, and those that have nothing left are complete.
create or replace function pgflow.count_off(p_ended pgflow.step_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_completed uuid[];
begin
  with counted as (
    update pgflow.runs r set remaining_steps = r.remaining_steps - e.ended
    from (select k.run_id, count(*)::int as ended from unnest(p_ended) k group by 1) e
    where r.run_id = e.run_id
    returning r.run_id, r.remaining_steps, r.status
  )
  select array_agg(c.run_id) into v_completed from counted c where c.remaining_steps = 0 and c.status = 'started';
  perform pgflow.complete_runs(v_completed);
end
$$;

create or replace function pgflow.complete_runs(p_run_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_completed uuid[];
begin
  if p_run_ids is null then
    return;
  end if;
  with completed as (
    update pgflow.runs r
    set status = 'completed', completed_at = clock_timestamp(), output = (
      select jsonb_object_agg(st.step_slug, coalesce(st.output, 'null')) from pgflow.step_states st
      where st.run_id = r.run_id and st.status = 'completed' and not exists (
        select from pgflow.deps d where d.flow_slug = st.flow_slug and d.dep_slug = st.step_slug))
    where r.run_id = any (p_run_ids) and r.status = 'started' and r.remaining_steps = 0
    returning r.run_id
  )
  select array_agg(c.run_id) into v_completed from completed c;
  perform pgflow.emit_runs('completed', v_completed);
end
$$;

-- p_ended ended by now; p_ready wait for nothing already. p_max_waves bounds the waves of taskless steps, as the
-- contract has it for its own functions.
create or replace function pgflow.advance(
  p_ended pgflow.step_key[], p_ready pgflow.step_key[] default null, p_worker_id uuid default null, p_claim int default 0,
  p_handlers text[] default null, p_max_waves int default null
) returns setof pgflow.claimed_task
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_has_maps boolean := pgflow.has_maps(coalesce(p_ended, p_ready));
  v_has_conditions boolean := pgflow.has_conditions(coalesce(p_ended, p_ready));
  v_wave pgflow.step_key[] := p_ended;
  v_ended pgflow.step_key[] := p_ended;
  v_next pgflow.step_key[] := p_ready;
  v_ready pgflow.step_key[];
  v_skipped pgflow.step_key[];
  v_taskless pgflow.step_key[];
  v_waves int := 0;
begin
  loop
    v_next := v_next || pgflow.release_children(v_wave);
    exit when v_next is null or cardinality(v_next) = 0;
    v_ready := v_ready || v_next;
    v_wave := null;
    if v_has_conditions then
      select array_agg(c.step) filter (where c.releases), array_agg(c.step) into v_wave, v_skipped
      from pgflow.resolve_conditions(v_next) c;
      v_ended := v_ended || v_skipped;
    end if;
    if v_has_maps then
      v_taskless := pgflow.complete_taskless(v_next);
      v_waves := v_waves + case when v_taskless is null then 0 else 1 end;
      if v_waves > p_max_waves then
        raise exception 'Cascade loop exceeded safety limit of % iterations', p_max_waves;
      end if;
      v_wave := v_wave || v_taskless;
      v_ended := v_ended || v_taskless;
    end if;
    exit when v_wave is null;
    v_next := null;
  end loop;
  if v_ready is not null then
    return query select s.* from pgflow.start_steps(v_ready, p_worker_id, p_claim, p_handlers) s;
  end if;
  if v_ended is not null then
    perform pgflow.count_off(v_ended);
  end if;
end
$$;
