-- The workflow engine whole. What ran before goes on: LLMRequestWorkflow's runs and tasks keep their rows.

drop function pgflow.fail_runs(uuid[], text[], boolean);
drop function pgflow.send_queued(text, uuid[]);
drop function pgflow.recover_tasks(interval);

alter table pgflow.flows
  add column queue_name text,
  add column paused_at timestamptz,
  add column name text,
  add column version int not null default 1,
  add column definition jsonb;
update pgflow.flows set queue_name = pgflow.queue_name(flow_slug), name = flow_slug;

alter table pgflow.steps add column handler text;

create index runs_by_time on pgflow.runs (started_at, flow_slug) where flow_slug <> 'llm_request_workflow';

alter table pgflow.step_states
  add constraint remaining_tasks_matches_status check (case status
    when 'created' then remaining_tasks is null when 'skipped' then remaining_tasks is null
    when 'completed' then remaining_tasks = 0 else true end);

alter table pgflow.step_tasks
  add column input jsonb,
  add column deferred_until timestamptz,
  add column deferral_token uuid,
  add column deferral jsonb,
  add column progress jsonb,
  add constraint deferred_only_when_started check (deferred_until is null or status = 'started' and deferral_token is not null);

create unique index step_tasks_by_token on pgflow.step_tasks (deferral_token) where deferral_token is not null;
create index step_tasks_by_deferral on pgflow.step_tasks (deferred_until) where deferred_until is not null;

-- Functions that a platform may start workers by; kept for clients that know it.
create table pgflow.worker_functions (
  function_name   text primary key,
  enabled         boolean not null default true,
  debounce        interval not null default '6 seconds',
  last_invoked_at timestamptz,
  created_at      timestamptz not null default now(),
  updated_at      timestamptz not null default now()
);

-- A task does not outlive its knowledge of a worker that was deleted. A foreign key would say the same, at the price
-- of a look-up and a row lock for every claim, and of one walk over all tasks for every deleted worker.
create function pgflow.forget_workers() returns trigger
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  update pgflow.step_tasks t set last_worker_id = null from gone g where t.last_worker_id = g.worker_id;
  return null;
end
$$;
create trigger forget_workers after delete on pgflow.workers referencing old table as gone
  for each statement execute function pgflow.forget_workers();

-- A claimed task as start_tasks hands it out.
create type pgflow.step_task_record as (
  flow_slug  text,
  run_id     uuid,
  step_slug  text,
  input      jsonb,
  msg_id     bigint,
  task_index int,
  flow_input jsonb
);

-- The same for batches: attempt is the fence to end the task with, timeout is in seconds. Where outcome is 'refused'
-- the task was not this worker's any more, and only its name is given.
create type pgflow.claimed_task as (
  outcome    text,
  flow_slug  text,
  run_id     uuid,
  step_slug  text,
  task_index int,
  attempt    int,
  input      jsonb,
  flow_input jsonb,
  timeout    double precision
);

-- The names of steps and tasks, as the engine's functions hand them to each other.
create type pgflow.step_key as (flow_slug text, run_id uuid, step_slug text);
create type pgflow.task_key as (flow_slug text, run_id uuid, step_slug text, task_index int, message_id bigint);

-- Defining flows: idempotent, never changing what is there.

-- A flow's queue bears its slug when that is a legal queue name, else a hash of it: pgmq folds case and
-- allows 47 characters.
create or replace function pgflow.queue_name(flow_slug text) returns text
language sql immutable parallel safe as $$
  select case when length(flow_slug) <= 47 and flow_slug = lower(flow_slug) then flow_slug
              else 'pgflow_' || md5(flow_slug) end
$$;

-- Where a flow's messages go; null for a flow that is not defined.
create or replace function pgflow.queue_of(flow_slug text) returns text
language plpgsql stable set search_path = pg_catalog, pgflow as $$
begin
  return (select coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) from pgflow.flows f
          where f.flow_slug = queue_of.flow_slug);
end
$$;

-- Whether a queue of that name is there and is somebody else's: a request lane, another flow's, or one with messages
-- that name no flow.
create or replace function pgflow.is_foreign_queue(p_queue text, p_flow_slug text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pgflow as $$
declare
  v_foreign boolean;
begin
  if p_queue like 'ai\_requests%' or p_queue in ('ai_results', 'pgflow_built')
    or exists (select from pgflow.flows f where coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) = p_queue
                                            and f.flow_slug <> p_flow_slug)
  then
    return true;
  elsif not exists (select from pgmq.meta m where m.queue_name = p_queue) then
    return false;
  end if;
  execute format('select exists (select from pgmq.%I where (message ? ''flow_slug'') is not true)',
                 pgmq.format_table_name(p_queue, 'q'))
  into v_foreign;
  return v_foreign;
end
$$;

-- Create a flow's queue and let both sides use it, whatever role defines the flow.
create or replace function pgflow.create_queue(p_queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow as $$
declare
  v_role text;
begin
  if not exists (select from pgmq.meta m where m.queue_name = p_queue) then
    perform pgmq.create(p_queue);
  end if;
  for v_role in select rolname from pg_roles where rolname in ('pgnexus_caller', 'pgnexus_nexus') loop
    execute format('grant select, insert, update, delete on pgmq.%I, pgmq.%I to %I',
                   pgmq.format_table_name(p_queue, 'q'), pgmq.format_table_name(p_queue, 'a'), v_role);
  end loop;
end
$$;

create or replace function pgflow.create_flow(
  flow_slug text, max_attempts int default null, base_delay int default null, timeout int default null
) returns pgflow.flows
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_queue text := pgflow.queue_name(create_flow.flow_slug);
  v_flow pgflow.flows;
begin
  select * into v_flow from pgflow.flows f where f.flow_slug = create_flow.flow_slug;
  if not found then
    if pgflow.is_foreign_queue(v_queue, create_flow.flow_slug) then
      v_queue := 'pgflow_' || md5(create_flow.flow_slug);
    end if;
    insert into pgflow.flows as f (flow_slug, opt_max_attempts, opt_base_delay, opt_timeout, queue_name, name)
    values (create_flow.flow_slug, coalesce(max_attempts, 3), coalesce(base_delay, 5), coalesce(timeout, 60),
            v_queue, create_flow.flow_slug)
    on conflict on constraint flows_pkey do nothing;
    select * into v_flow from pgflow.flows f where f.flow_slug = create_flow.flow_slug;
  end if;
  perform pgflow.create_queue(pgflow.queue_of(create_flow.flow_slug))
    where not exists (select from pgmq.meta m where m.queue_name = pgflow.queue_of(create_flow.flow_slug));
  return v_flow;
end
$$;

create or replace function pgflow.add_step(
  flow_slug text, step_slug text, deps_slugs text[] default '{}', max_attempts int default null,
  base_delay int default null, timeout int default null, start_delay int default null,
  step_type text default 'single', required_input_pattern jsonb default null,
  forbidden_input_pattern jsonb default null, when_unmet text default 'skip', when_exhausted text default 'fail'
) returns pgflow.steps
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_deps text[] := array(select distinct d from unnest(deps_slugs) as d);
  step pgflow.steps;
begin
  if add_step.step_type = 'map' and cardinality(v_deps) > 1 then
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
         cardinality(v_deps), max_attempts, base_delay, timeout, start_delay,
         add_step.required_input_pattern, add_step.forbidden_input_pattern,
         coalesce(add_step.when_unmet, 'skip'), coalesce(add_step.when_exhausted, 'fail')
  on conflict on constraint steps_pkey do nothing
  returning s.* into step;
  if not found then  -- there already: nothing of it changes, its dependencies neither
    select * into step from pgflow.steps s
    where s.flow_slug = add_step.flow_slug and s.step_slug = add_step.step_slug;
    return step;
  end if;
  insert into pgflow.deps (flow_slug, dep_slug, step_slug)
  select add_step.flow_slug, dep, add_step.step_slug from unnest(v_deps) as dep;
  return step;
end
$$;

create or replace function pgflow.calculate_retry_delay(base_delay numeric, attempts_count int) returns int
language sql immutable parallel safe as $$
  select least(floor(base_delay * 2::numeric ^ least(attempts_count, 60)), 2147483647)::int
$$;

-- Shapes: a flow's graph as JSON, so that code and database can be compared. Options are applied, not compared.

create or replace function pgflow.is_local() returns boolean
language sql stable set search_path = pg_catalog, pgflow as $$
  select lower(coalesce(current_setting('pgflow.is_local', true), '')) in ('on', 'true', '1', 'yes')
$$;

create or replace function pgflow.pattern_shape(p_pattern jsonb) returns jsonb
language sql immutable parallel safe as $$
  select case when p_pattern is null then jsonb_build_object('defined', false)
              else jsonb_build_object('defined', true, 'value', p_pattern) end
$$;

create or replace function pgflow.list_shape(p_list jsonb) returns text
language sql immutable parallel safe as $$
  select '[' || coalesce((select string_agg(d, ', ' order by d) from jsonb_array_elements_text(coalesce(p_list, '[]')) as d), '') || ']'
$$;

create or replace function pgflow.compare_step_shapes(p_index int, p_local jsonb, p_db jsonb) returns text[]
language sql stable set search_path = pg_catalog, pgflow as $$
  select coalesce(array_agg(format('Step at index %s: %s differs %s vs %s', p_index, c.what, c.local, c.db) order by c.n), '{}')
  from (values
    (1, 'slug', quote_literal(p_local ->> 'slug'), quote_literal(p_db ->> 'slug')),
    (2, 'type', quote_literal(coalesce(p_local ->> 'stepType', 'single')), quote_literal(coalesce(p_db ->> 'stepType', 'single'))),
    (3, 'dependencies', pgflow.list_shape(p_local -> 'dependencies'), pgflow.list_shape(p_db -> 'dependencies')),
    (4, 'whenUnmet', quote_literal(coalesce(p_local ->> 'whenUnmet', 'skip')), quote_literal(coalesce(p_db ->> 'whenUnmet', 'skip'))),
    (5, 'whenExhausted', quote_literal(coalesce(p_local ->> 'whenExhausted', 'fail')), quote_literal(coalesce(p_db ->> 'whenExhausted', 'fail'))),
    (6, 'requiredInputPattern', quote_literal(coalesce(p_local -> 'requiredInputPattern', pgflow.pattern_shape(null))),
     quote_literal(coalesce(p_db -> 'requiredInputPattern', pgflow.pattern_shape(null)))),
    (7, 'forbiddenInputPattern', quote_literal(coalesce(p_local -> 'forbiddenInputPattern', pgflow.pattern_shape(null))),
     quote_literal(coalesce(p_db -> 'forbiddenInputPattern', pgflow.pattern_shape(null))))
  ) as c (n, what, local, db)
  where c.local is distinct from c.db
$$;

create or replace function pgflow._get_flow_shape(p_flow_slug text) returns jsonb
language sql stable set search_path = pg_catalog, pgflow as $$
  select jsonb_build_object('steps', coalesce(jsonb_agg(jsonb_build_object(
    'slug', s.step_slug,
    'stepType', s.step_type,
    'dependencies', coalesce((
      select jsonb_agg(d.dep_slug order by d.dep_slug) from pgflow.deps d
      where d.flow_slug = s.flow_slug and d.step_slug = s.step_slug), '[]'),
    'whenUnmet', s.when_unmet,
    'whenExhausted', s.when_exhausted,
    'requiredInputPattern', pgflow.pattern_shape(s.required_input_pattern),
    'forbiddenInputPattern', pgflow.pattern_shape(s.forbidden_input_pattern)
  ) order by s.step_index), '[]'))
  from pgflow.steps s where s.flow_slug = p_flow_slug
$$;

create or replace function pgflow._create_flow_from_shape(p_flow_slug text, p_shape jsonb) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_step jsonb;
begin
  perform pgflow.create_flow(
    p_flow_slug, (p_shape #>> '{options,maxAttempts}')::int, (p_shape #>> '{options,baseDelay}')::int,
    (p_shape #>> '{options,timeout}')::int);
  for v_step in select s.step from jsonb_array_elements(p_shape -> 'steps') with ordinality as s (step, n) order by s.n loop
    perform pgflow.add_step(
      flow_slug => p_flow_slug, step_slug => v_step ->> 'slug',
      deps_slugs => array(select d from jsonb_array_elements_text(coalesce(v_step -> 'dependencies', '[]')) as d),
      max_attempts => (v_step #>> '{options,maxAttempts}')::int, base_delay => (v_step #>> '{options,baseDelay}')::int,
      timeout => (v_step #>> '{options,timeout}')::int, start_delay => (v_step #>> '{options,startDelay}')::int,
      step_type => coalesce(v_step ->> 'stepType', 'single'),
      required_input_pattern => case when (v_step #>> '{requiredInputPattern,defined}')::boolean
                                     then v_step #> '{requiredInputPattern,value}' end,
      forbidden_input_pattern => case when (v_step #>> '{forbiddenInputPattern,defined}')::boolean
                                      then v_step #> '{forbiddenInputPattern,value}' end,
      when_unmet => coalesce(v_step ->> 'whenUnmet', 'skip'), when_exhausted => coalesce(v_step ->> 'whenExhausted', 'fail'));
  end loop;
end
$$;

create or replace function pgflow._compare_flow_shapes(p_local jsonb, p_db jsonb) returns text[]
language plpgsql stable set search_path = pg_catalog, pgflow as $$
declare
  v_differences text[] := '{}';
  v_local_count int := jsonb_array_length(coalesce(p_local -> 'steps', '[]'));
  v_db_count int := jsonb_array_length(coalesce(p_db -> 'steps', '[]'));
  v_local jsonb;
  v_db jsonb;
begin
  if v_local_count <> v_db_count then
    v_differences := v_differences || format('Step count differs: %s vs %s', v_local_count, v_db_count);
  end if;
  for i in 0 .. greatest(v_local_count, v_db_count) - 1 loop
    v_local := p_local -> 'steps' -> i;
    v_db := p_db -> 'steps' -> i;
    if v_local is null then
      v_differences := v_differences || format('Step at index %s: missing in first shape (second has ''%s'')', i, v_db ->> 'slug');
    elsif v_db is null then
      v_differences := v_differences || format('Step at index %s: missing in second shape (first has ''%s'')', i, v_local ->> 'slug');
    else
      v_differences := v_differences || pgflow.compare_step_shapes(i, v_local, v_db);
    end if;
  end loop;
  return v_differences;
end
$$;

-- Make the database's flow what the code says: compile it where it is missing, verify it where it is there. A flow of
-- another shape is recompiled, with the loss of its runs, where that is allowed; else the mismatch is told.
create or replace function pgflow.ensure_flow_compiled(flow_slug text, shape jsonb, allow_data_loss boolean default false)
returns jsonb
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_differences text[];
  v_status text;
begin
  perform pg_advisory_xact_lock(hashtextextended('pgflow.compile ' || ensure_flow_compiled.flow_slug, 0));
  if not exists (select from pgflow.flows f where f.flow_slug = ensure_flow_compiled.flow_slug) then
    perform pgflow._create_flow_from_shape(ensure_flow_compiled.flow_slug, shape);
    return jsonb_build_object('status', 'compiled', 'differences', '[]'::jsonb);
  end if;
  v_differences := pgflow._compare_flow_shapes(shape, pgflow._get_flow_shape(ensure_flow_compiled.flow_slug));
  if cardinality(v_differences) = 0 then
    v_status := 'verified';
  elsif allow_data_loss or pgflow.is_local() then
    perform pgflow.delete_flow_and_data(ensure_flow_compiled.flow_slug);
    perform pgflow._create_flow_from_shape(ensure_flow_compiled.flow_slug, shape);
    v_status := 'recompiled';
  else
    v_status := 'mismatch';
  end if;
  return jsonb_build_object('status', v_status, 'differences', to_jsonb(v_differences));
end
$$;

-- Delete a flow with its runs, its messages and its queue.
create or replace function pgflow.delete_flow_and_data(p_flow_slug text) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow as $$
declare
  v_queue text := pgflow.queue_of(p_flow_slug);
  v_kind text;
begin
  if p_flow_slug = 'llm_request_workflow' then
    raise exception using errcode = 'PN002', message = 'llm_request_workflow belongs to pgnexus itself: it cannot be deleted';
  end if;
  if v_queue = 'pgflow_built' then
    foreach v_kind in array '{q,a}'::text[] loop  -- others go on using it
      execute format('delete from pgmq.%I where message ->> ''flow_slug'' = $1', pgmq.format_table_name(v_queue, v_kind)) using p_flow_slug;
    end loop;
  elsif exists (select from pgmq.meta m where m.queue_name = v_queue) then
    perform pgmq.drop_queue(v_queue);
  end if;
  delete from pgflow.step_tasks t where t.flow_slug = p_flow_slug;
  delete from pgflow.step_states st where st.flow_slug = p_flow_slug;
  delete from pgflow.runs r where r.flow_slug = p_flow_slug;
  delete from pgflow.deps d where d.flow_slug = p_flow_slug;
  delete from pgflow.steps s where s.flow_slug = p_flow_slug;
  delete from pgflow.flows f where f.flow_slug = p_flow_slug;
end
$$;

-- Versions: a changed shape is compiled beside the old one, so that runs in flight end on the shape they began with.

-- The newest version of a name, or the slug itself where it is no name; null when there is neither.
create or replace function pgflow.newest_version(p_name text) returns text
language plpgsql stable set search_path = pg_catalog, pgflow as $$
begin
  return coalesce(
    (select f.flow_slug from pgflow.flows f where f.name = p_name order by f.version desc limit 1),
    (select f.flow_slug from pgflow.flows f where f.flow_slug = p_name));
end
$$;

-- The run_id that a key stands for: starting twice by the same key starts once.
create or replace function pgflow.run_id_for(p_name text, p_key text) returns uuid
language sql immutable parallel safe as $$
  select md5('pgflow run ' || p_name || e'\n' || p_key)::uuid
$$;

-- Compile a flow for the code that runs it: the version of its name that has this shape, or a new one,
-- `name__vN`. Options and definition follow the code.
create or replace function pgflow.compile_flow(p_name text, p_shape jsonb, p_definition jsonb default null)
returns table (flow_slug text, queue_name text, created boolean)
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_version int;
begin
  perform pg_advisory_xact_lock(hashtextextended('pgflow.compile ' || p_name, 0));
  select f.flow_slug into compile_flow.flow_slug from pgflow.flows f
  where coalesce(f.name, f.flow_slug) = p_name
    and cardinality(pgflow._compare_flow_shapes(p_shape, pgflow._get_flow_shape(f.flow_slug))) = 0
  order by f.version desc limit 1;
  created := not found;
  if created then
    select coalesce(max(f.version), 0) + 1 into v_version from pgflow.flows f where coalesce(f.name, f.flow_slug) = p_name;
    compile_flow.flow_slug := case when v_version = 1 then p_name else p_name || '__v' || v_version end;
    if exists (select from pgflow.flows f where f.flow_slug = compile_flow.flow_slug) then
      raise exception using errcode = 'PN002', message = format(
        'flow "%s": its version %s wants the slug "%s", which another flow has', p_name, v_version, compile_flow.flow_slug);
    end if;
    perform pgflow._create_flow_from_shape(compile_flow.flow_slug, p_shape);
  else
    perform pgflow.apply_options(compile_flow.flow_slug, p_shape);
  end if;
  update pgflow.flows f set name = p_name, version = coalesce(v_version, f.version), definition = p_definition
  where f.flow_slug = compile_flow.flow_slug
    and (f.name, f.version, f.definition) is distinct from (p_name, coalesce(v_version, f.version), p_definition);
  queue_name := pgflow.queue_of(compile_flow.flow_slug);
  return next;
end
$$;

create or replace function pgflow.apply_options(p_flow_slug text, p_shape jsonb) returns void
language sql set search_path = pg_catalog, pgflow as $$
  update pgflow.flows f
  set opt_max_attempts = o.max_attempts, opt_base_delay = o.base_delay, opt_timeout = o.timeout
  from (select coalesce((p_shape #>> '{options,maxAttempts}')::int, 3) as max_attempts,
               coalesce((p_shape #>> '{options,baseDelay}')::int, 5) as base_delay,
               coalesce((p_shape #>> '{options,timeout}')::int, 60) as timeout) o
  where f.flow_slug = p_flow_slug
    and (f.opt_max_attempts, f.opt_base_delay, f.opt_timeout) is distinct from (o.max_attempts, o.base_delay, o.timeout);
  update pgflow.steps s
  set opt_max_attempts = o.max_attempts, opt_base_delay = o.base_delay, opt_timeout = o.timeout, opt_start_delay = o.start_delay
  from (select e.step ->> 'slug' as slug, (e.step #>> '{options,maxAttempts}')::int as max_attempts,
               (e.step #>> '{options,baseDelay}')::int as base_delay, (e.step #>> '{options,timeout}')::int as timeout,
               (e.step #>> '{options,startDelay}')::int as start_delay
        from jsonb_array_elements(p_shape -> 'steps') as e (step)) o
  where s.flow_slug = p_flow_slug and s.step_slug = o.slug
    and (s.opt_max_attempts, s.opt_base_delay, s.opt_timeout, s.opt_start_delay)
        is distinct from (o.max_attempts, o.base_delay, o.timeout, o.start_delay)
$$;

-- Register a flow built at run time. It is keyed by what it is, and shares one queue with all others of its kind; a
-- step names in `handler` the action that runs it.
create or replace function pgflow.register_built_flow(p_shape jsonb, p_definition jsonb)
returns table (flow_slug text, queue_name text, created boolean)
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  register_built_flow.flow_slug := 'built_' || md5(p_shape::text || coalesce(p_definition::text, ''));
  register_built_flow.queue_name := 'pgflow_built';
  perform pg_advisory_xact_lock(hashtextextended('pgflow.compile ' || register_built_flow.flow_slug, 0));
  created := not exists (select from pgflow.flows f where f.flow_slug = register_built_flow.flow_slug);
  if created then
    perform pgflow.create_queue('pgflow_built');
    insert into pgflow.flows (flow_slug, queue_name, name, definition)
    values (register_built_flow.flow_slug, 'pgflow_built', register_built_flow.flow_slug, p_definition);
    perform pgflow._create_flow_from_shape(register_built_flow.flow_slug, p_shape);
    perform pgflow.apply_options(register_built_flow.flow_slug, p_shape);
    update pgflow.steps s set handler = e.step ->> 'handler'
    from jsonb_array_elements(p_shape -> 'steps') as e (step)
    where s.flow_slug = register_built_flow.flow_slug and s.step_slug = e.step ->> 'slug';
  end if;
  return next;
end
$$;

-- Events. Watchers are told by NOTIFY in which runs something changed, and read the tables; where the server has
-- realtime.send (Supabase), the contract's payloads go through it, too.

create or replace function pgflow.has_realtime() returns boolean
language sql stable set search_path = pg_catalog, pgflow as $$
  select to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null
$$;

-- Ids only, and in portions: a payload of 8,000 bytes would abort the transaction.
create or replace function pgflow.notify_runs(p_run_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_ids text;
begin
  for v_ids in
    select string_agg(e.id::text, ',')
    from (select d.id, row_number() over () as n from (select distinct unnest(p_run_ids) as id) d) e group by (e.n - 1) / 200
  loop
    perform pg_notify('pgflow_runs', v_ids);
  end loop;
end
$$;

-- One event a run: p_kind is started, completed or failed.
create or replace function pgflow.emit_runs(p_kind text, p_run_ids uuid[], p_errors text[] default null) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  if not pgflow.has_realtime() then
    return;
  end if;
  perform realtime.send(
    jsonb_build_object('event_type', 'run:' || p_kind, 'run_id', r.run_id, 'flow_slug', r.flow_slug, 'status', r.status)
    || case p_kind
         when 'started' then jsonb_build_object('input', r.input, 'remaining_steps', r.remaining_steps, 'started_at', r.started_at)
         when 'completed' then jsonb_build_object('output', r.output, 'completed_at', r.completed_at)
         else jsonb_build_object('failed_at', r.failed_at)
              || case when i.error is null then '{}' else jsonb_build_object('error_message', i.error) end
       end,
    'run:' || p_kind, 'pgflow:run:' || r.run_id, false)
  from unnest(p_run_ids, p_errors) with ordinality as i (run_id, error, n) join pgflow.runs r on r.run_id = i.run_id
  where i.run_id is not null
  order by i.n;
end
$$;

-- One event a step, in the order of the flow: p_kind is started, completed, failed or skipped.
create or replace function pgflow.emit_steps(p_kind text, p_steps pgflow.step_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  if not pgflow.has_realtime() then
    return;
  end if;
  perform pgflow.emit_step(p_kind, st)
  from (
    select st from unnest(p_steps) k
    join pgflow.step_states st on st.run_id = k.run_id and st.step_slug = k.step_slug
    join pgflow.steps s on s.flow_slug = st.flow_slug and s.step_slug = st.step_slug
    order by st.run_id, s.step_index
  ) ordered;
end
$$;

create or replace function pgflow.emit_step(p_kind text, p_state pgflow.step_states) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  perform realtime.send(
    jsonb_build_object('event_type', 'step:' || p_kind, 'run_id', p_state.run_id, 'step_slug', p_state.step_slug,
                       'status', p_kind)
    || case p_kind
         when 'started' then jsonb_build_object('started_at', p_state.started_at, 'remaining_tasks', p_state.initial_tasks,
                                                'remaining_deps', p_state.remaining_deps)
         when 'completed' then jsonb_build_object('output', p_state.output, 'completed_at', p_state.completed_at)
              || case when p_state.initial_tasks = 0 then jsonb_build_object('started_at', p_state.started_at) else '{}' end
         when 'failed' then jsonb_build_object('error_message', p_state.error_message, 'failed_at', p_state.failed_at)
         else jsonb_build_object('skip_reason', p_state.skip_reason, 'skipped_at', p_state.skipped_at)
       end,
    format('step:%s:%s', p_state.step_slug, p_kind), 'pgflow:run:' || p_state.run_id, false);
end
$$;

-- A flow's queue holds one message a task that may be claimed.

-- Put tasks' messages onto their flows' queues, p_delay seconds from now; returns the tasks with their message_id.
create or replace function pgflow.send_messages(p_tasks pgflow.task_key[], p_delay int default 0) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_sent pgflow.task_key[] := '{}';
  v_flow text;
  v_tasks pgflow.task_key[];
  v_messages jsonb[];
  v_ids bigint[];
begin
  for v_flow, v_tasks, v_messages in
    select t.flow_slug, array_agg(t order by t.n), array_agg(jsonb_build_object(
             'flow_slug', t.flow_slug, 'run_id', t.run_id, 'step_slug', t.step_slug, 'task_index', t.task_index) order by t.n)
    from (select k.flow_slug, k.run_id, k.step_slug, k.task_index, row_number() over () as n from unnest(p_tasks) k) t
    group by t.flow_slug
  loop
    v_ids := array(select pgmq.send_batch(pgflow.queue_of(v_flow), v_messages, p_delay));
    v_sent := v_sent || (
      select array_agg(row(k.flow_slug, k.run_id, k.step_slug, k.task_index, m.id)::pgflow.task_key order by k.n)
      from unnest(v_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
      join unnest(v_ids) with ordinality as m (id, n) on m.n = k.n);
  end loop;
  perform pg_notify('pgflow_tasks', '') where cardinality(v_sent) > 0;
  return v_sent;
end
$$;

-- Send messages for queued tasks that have none.
create or replace function pgflow.send_queued(p_tasks pgflow.task_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_sent pgflow.task_key[];
begin
  if cardinality(p_tasks) > 0 then
    v_sent := pgflow.send_messages(p_tasks);
    update pgflow.step_tasks t set message_id = k.message_id
    from unnest(v_sent) k
    where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  end if;
end
$$;

-- Archive the messages of tasks; those without one are left out.
create or replace function pgflow.archive_messages(p_tasks pgflow.task_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_flow text;
  v_ids bigint[];
begin
  for v_flow, v_ids in
    select k.flow_slug, array_agg(k.message_id) from unnest(p_tasks) k where k.message_id is not null group by 1
  loop
    perform pgmq.archive(pgflow.queue_of(v_flow), v_ids);
  end loop;
end
$$;

-- Locks, and how steps and runs end without success. Whoever fails or skips holds the runs' rows exclusively.
--
-- The order in which everybody locks, so that nobody waits in a circle: rows of tasks in the order of their keys; rows
-- of their own steps in the order of (run_id, step_slug); rows of runs in the order of run_id; messages of their own tasks. Whatever else of a run is
-- changed, is changed while its row is held exclusively, and rows of other tasks that somebody else holds are skipped: he
-- waits for the run, and finds then that it has ended. Who claims waits for nothing: what others hold, he leaves.

-- Hold the rows of the tasks' steps, in order.
create or replace function pgflow.hold_steps(p_tasks pgflow.task_key[]) returns setof pgflow.step_states
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  return query
    with named as materialized (select distinct k.run_id, k.step_slug from unnest(p_tasks) k order by 1, 2)
    select st.* from named n cross join lateral (
      select * from pgflow.step_states st where st.run_id = n.run_id and st.step_slug = n.step_slug for no key update) st;
end
$$;

-- Hold the runs' rows, in order: alone where one of them will change, else shared with others that only count. Returns
-- those that are under way.
create or replace function pgflow.hold_runs(p_run_ids uuid[], p_alone boolean) returns uuid[]
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  if p_alone then
    return array(select h.run_id from (
      select r.run_id, r.status from pgflow.runs r where r.run_id = any (p_run_ids) order by r.run_id for no key update) h
      where h.status = 'started');
  end if;
  return array(select h.run_id from (
    select r.run_id, r.status from pgflow.runs r where r.run_id = any (p_run_ids) order by r.run_id for share) h
    where h.status = 'started');
end
$$;

-- Tasks that were ended in this transaction before it was seen that their run or step had ended: they fail with it. A step
-- whose row somebody holds is left to him: he has a task of it, and comes here himself.
create or replace function pgflow.void_tasks(p_tasks pgflow.task_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  update pgflow.step_tasks t
  set status = 'failed', failed_at = clock_timestamp(), completed_at = null, output = null, not_before = null, deferred_until = null,
      error_message = case when t.status = 'failed' then t.error_message else 'its run or step had ended' end
  from unnest(p_tasks) k where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  with dead as materialized (
    select distinct k.run_id, k.step_slug from unnest(p_tasks) k join pgflow.runs r on r.run_id = k.run_id and r.status = 'failed'
  ), open as materialized (
    select st.run_id, st.step_slug from dead k
    join pgflow.step_states st on st.run_id = k.run_id and st.step_slug = k.step_slug
    where st.status = 'started' for no key update of st skip locked
  )
  update pgflow.step_states st
  set status = 'failed', failed_at = clock_timestamp(), error_message = 'the run failed'
  from open o where st.run_id = o.run_id and st.step_slug = o.step_slug;
  perform pgflow.archive_messages(p_tasks);
end
$$;

-- Of tasks that are refused, those that are open though their run or step has ended: whoever ended it passed them by, since
-- somebody held their rows. They end now; this waits for nobody.
create or replace function pgflow.void_refused(p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_late pgflow.task_key[];
begin
  with named as materialized (
    select t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
    from unnest(p_run_ids, p_step_slugs, p_task_indexes) as i (run_id, step_slug, task_index)
    join pgflow.step_tasks t on t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
    where t.status in ('queued', 'started')
  ), late as materialized (
    select n.* from named n
    join pgflow.runs r on r.run_id = n.run_id
    join pgflow.step_states st on st.run_id = n.run_id and st.step_slug = n.step_slug
    where r.status <> 'started' or st.status in ('completed', 'failed', 'skipped')
    for share of r skip locked
  ), held as materialized (
    select l.* from late l
    join pgflow.step_tasks t on t.run_id = l.run_id and t.step_slug = l.step_slug and t.task_index = l.task_index
    where t.status in ('queued', 'started') for no key update of t skip locked
  )
  select array_agg(row(h.*)::pgflow.task_key) into v_late from held h;
  if v_late is not null then
    perform pgflow.void_tasks(v_late);
  end if;
end
$$;

-- Tasks that were changed in this transaction and are still open: those whose run or step has ended meanwhile end with it.
-- Returns the others. Whoever changes open tasks calls this: who ended the run may have passed them by.
create or replace function pgflow.keep_open(p_tasks pgflow.task_key[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  return pgflow.keep_live(p_tasks, pgflow.hold_runs(array(select distinct k.run_id from unnest(p_tasks) k), false));
end
$$;

-- The same where the runs are held; p_live are those that are under way.
create or replace function pgflow.keep_live(p_tasks pgflow.task_key[], p_live uuid[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_open pgflow.task_key[];
  v_late pgflow.task_key[];
begin
  select array_agg(k) filter (where l.is_open), array_agg(k) filter (where not l.is_open) into v_open, v_late
  from unnest(p_tasks) k cross join lateral (
    select k.run_id = any (p_live) and exists (
      select from pgflow.step_states st where st.run_id = k.run_id and st.step_slug = k.step_slug and st.status = 'started') as is_open) l;
  if v_late is not null then
    perform pgflow.void_tasks(v_late);
  end if;
  return v_open;
end
$$;

-- Plans are made while the tables are small, and kept while they grow. So the functions that begin a transaction forbid
-- sequential scans, and a row is looked up by its whole key out of one materialized list, never by parts of it out of two.
-- Where a plan could begin with a table that was small, and walk the list for each of its rows, the look-up is a lateral one.

-- End the open tasks of runs, or of some of their steps; whoever works on one finds its completion refused.
create or replace function pgflow.end_open_tasks(p_run_ids uuid[], p_step_slugs text[], p_error text) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_ended pgflow.task_key[];
begin
  with open as (
    select t.run_id, t.step_slug, t.task_index
    from unnest(p_run_ids, p_step_slugs) as i (run_id, step_slug) cross join lateral (
      select * from pgflow.step_tasks t
      where t.run_id = i.run_id and (i.step_slug is null or t.step_slug = i.step_slug) and t.status in ('queued', 'started')
      for update skip locked) t
  ), ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = clock_timestamp(), error_message = p_error, not_before = null, deferred_until = null
    from open o where t.run_id = o.run_id and t.step_slug = o.step_slug and t.task_index = o.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
  )
  select array_agg(row(e.*)::pgflow.task_key) into v_ended from ended e;
  perform pgflow.archive_messages(v_ended);
end
$$;

-- Fail started runs, each for the failure of one step (null: of none, as when it is cancelled): that step and every
-- other started one fail, open tasks end, active messages are archived.
create or replace function pgflow.fail_runs(
  p_run_ids uuid[], p_step_slugs text[], p_errors text[], p_cancelled boolean default false, p_event_names_error boolean default true
) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_failed pgflow.step_key[];
begin
  with failed as (
    update pgflow.step_states st
    set status = 'failed', failed_at = clock_timestamp(), error_message = i.error
    from unnest(p_run_ids, p_step_slugs, p_errors) as i (run_id, step_slug, error)
    where st.run_id = i.run_id and st.step_slug = i.step_slug and st.status in ('created', 'started')
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(f.*)::pgflow.step_key) into v_failed from failed f;
  perform pgflow.emit_steps('failed', v_failed);
  update pgflow.runs r
  set status = 'failed', failed_at = clock_timestamp(), cancelled_at = case when p_cancelled then clock_timestamp() end
  where r.run_id = any (p_run_ids) and r.status = 'started';
  perform pgflow.emit_runs('failed', p_run_ids, case when p_event_names_error then p_errors end);
  perform pgflow.end_open_tasks(p_run_ids, array_fill(null::text, array[cardinality(p_run_ids)]),
                                case when p_cancelled then 'cancelled' else 'the run failed' end);
  with others as (
    select st.run_id, st.step_slug, i.step_slug as culprit
    from unnest(p_run_ids, p_step_slugs) as i (run_id, step_slug) cross join lateral (
      select * from pgflow.step_states st where st.run_id = i.run_id and st.status = 'started' for update skip locked) st
  )
  update pgflow.step_states st
  set status = 'failed', failed_at = clock_timestamp(),
      error_message = case when p_cancelled then 'cancelled' else format('the run failed in step %s', o.culprit) end
  from others o where st.run_id = o.run_id and st.step_slug = o.step_slug;
  perform pgflow.notify_runs(p_run_ids);
end
$$;

-- Skip steps with everything downstream of them, each step once however many paths lead to it; returns all that were
-- skipped by this. Their runs' counts are the caller's to lower.
create or replace function pgflow.skip_cascade(p_steps pgflow.step_key[], p_reason text, p_errors text[] default null)
returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_skipped pgflow.step_key[];
begin
  with recursive downstream as (
    select k.flow_slug, k.run_id, k.step_slug from unnest(p_steps) k
    union
    select d.flow_slug, u.run_id, d.step_slug
    from downstream u join pgflow.deps d on d.flow_slug = u.flow_slug and d.dep_slug = u.step_slug
  ), causes as (
    select k.run_id, k.step_slug, e.error from unnest(p_steps) with ordinality as k (flow_slug, run_id, step_slug, n)
    left join unnest(p_errors) with ordinality as e (error, n) on e.n = k.n
  ), skipped as (
    update pgflow.step_states st
    set status = 'skipped', skipped_at = clock_timestamp(), remaining_tasks = null,
        skip_reason = case when c.run_id is not null then p_reason else 'dependency_skipped' end,
        error_message = coalesce(c.error, st.error_message)
    from downstream u left join causes c on c.run_id = u.run_id and c.step_slug = u.step_slug
    where st.run_id = u.run_id and st.step_slug = u.step_slug and st.status in ('created', 'started')
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(s.*)::pgflow.step_key) into v_skipped from skipped s;
  perform pgflow.end_skipped(v_skipped);
  return v_skipped;
end
$$;

-- Skip steps alone: their children go on without them. Returns those that were skipped by this.
create or replace function pgflow.skip_steps(p_steps pgflow.step_key[], p_reason text, p_errors text[] default null)
returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_skipped pgflow.step_key[];
begin
  with skipped as (
    update pgflow.step_states st
    set status = 'skipped', skipped_at = clock_timestamp(), remaining_tasks = null, skip_reason = p_reason,
        error_message = coalesce(e.error, st.error_message)
    from unnest(p_steps) with ordinality as k (flow_slug, run_id, step_slug, n)
    left join unnest(p_errors) with ordinality as e (error, n) on e.n = k.n
    where st.run_id = k.run_id and st.step_slug = k.step_slug and st.status in ('created', 'started')
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(s.*)::pgflow.step_key) into v_skipped from skipped s;
  perform pgflow.end_skipped(v_skipped);
  return v_skipped;
end
$$;

create or replace function pgflow.end_skipped(p_steps pgflow.step_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  if p_steps is not null then
    perform pgflow.end_open_tasks(array_agg(k.run_id), array_agg(k.step_slug), 'the step was skipped') from unnest(p_steps) k;
    perform pgflow.emit_steps('skipped', p_steps);
  end if;
end
$$;

-- What the end of a step brings about: its children come nearer, are skipped, completed without a task, or started;
-- and the run may be complete. All of it for a batch of steps in one pass. Whoever calls this holds the runs' rows
-- exclusively.

create or replace function pgflow.has_maps(p_steps pgflow.step_key[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pgflow as $$
begin
  return exists (select from pgflow.steps s where s.step_type = 'map' and s.flow_slug in (select k.flow_slug from unnest(p_steps) k));
end
$$;

create or replace function pgflow.has_conditions(p_steps pgflow.step_key[]) returns boolean
language plpgsql stable set search_path = pg_catalog, pgflow as $$
begin
  return exists (select from pgflow.steps s
                 where (s.required_input_pattern is not null or s.forbidden_input_pattern is not null)
                   and s.flow_slug in (select k.flow_slug from unnest(p_steps) k));
end
$$;

-- Count steps that ended off their children; a map child learns its number of tasks from its only parent. Returns the
-- children that wait for nothing any more.
create or replace function pgflow.release_children(p_ended pgflow.step_key[]) returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql stable set search_path = pg_catalog, pgflow as $$
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
language plpgsql stable set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql stable set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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

-- The contract's functions on one run: the same pieces as in advance, one by one.

-- The steps of a run that wait for nothing and have not begun.
create or replace function pgflow.ready_steps(p_run_id uuid) returns pgflow.step_key[]
language sql stable set search_path = pg_catalog, pgflow as $$
  select array_agg(row(st.flow_slug, st.run_id, st.step_slug)::pgflow.step_key order by s.step_index)
  from pgflow.step_states st join pgflow.steps s on s.flow_slug = st.flow_slug and s.step_slug = st.step_slug
  where st.run_id = p_run_id and st.status = 'created' and st.remaining_deps = 0
$$;

-- Hold a run's row; null when it is not under way.
create or replace function pgflow.hold_run(p_run_id uuid) returns uuid
language sql volatile set search_path = pg_catalog, pgflow as $$
  select r.run_id from pgflow.runs r where r.run_id = p_run_id and r.status = 'started' for no key update
$$;

-- Resolve the conditions of a run's ready steps to the fixpoint; false when that failed the run.
create or replace function pgflow.cascade_resolve_conditions(run_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_skipped pgflow.step_key[];
  v_releasing pgflow.step_key[];
begin
  if pgflow.hold_run(cascade_resolve_conditions.run_id) is null then
    return coalesce((select r.status <> 'failed' from pgflow.runs r where r.run_id = cascade_resolve_conditions.run_id), true);
  end if;
  loop
    select array_agg(c.step), array_agg(c.step) filter (where c.releases) into v_skipped, v_releasing
    from pgflow.resolve_conditions(pgflow.ready_steps(cascade_resolve_conditions.run_id)) c;
    exit when v_skipped is null;
    perform pgflow.release_children(v_releasing);
    update pgflow.runs r set remaining_steps = r.remaining_steps - cardinality(v_skipped)
    where r.run_id = cascade_resolve_conditions.run_id;
  end loop;
  return (select r.status <> 'failed' from pgflow.runs r where r.run_id = cascade_resolve_conditions.run_id);
end
$$;

-- Skip a step and all that is downstream of it; returns how many were skipped by this.
create or replace function pgflow._cascade_force_skip_steps(run_id uuid, step_slug text, skip_reason text) returns int
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_skipped pgflow.step_key[];
begin
  perform from pgflow.step_states st  -- before the run, as whoever ends its tasks does
  where st.run_id = _cascade_force_skip_steps.run_id and st.step_slug = _cascade_force_skip_steps.step_slug
    and st.status = 'started' for no key update;
  perform pgflow.hold_run(_cascade_force_skip_steps.run_id);
  with held as (  -- whoever else holds it, is ending it
    select row(st.flow_slug, st.run_id, st.step_slug)::pgflow.step_key as step from pgflow.step_states st
    where st.run_id = _cascade_force_skip_steps.run_id and st.step_slug = _cascade_force_skip_steps.step_slug
      and st.status in ('created', 'started') for no key update skip locked
  )
  select pgflow.skip_cascade(array_agg(h.step), _cascade_force_skip_steps.skip_reason) into v_skipped from held h;
  update pgflow.runs r set remaining_steps = r.remaining_steps - cardinality(v_skipped)
  where r.run_id = _cascade_force_skip_steps.run_id and v_skipped is not null;
  return coalesce(cardinality(v_skipped), 0);
end
$$;

-- Complete steps without tasks, wave by wave; returns how many.
create or replace function pgflow.cascade_complete_taskless_steps(run_id uuid) returns int
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_wave pgflow.step_key[];
  v_count int := 0;
begin
  if pgflow.hold_run(cascade_complete_taskless_steps.run_id) is null then
    return 0;
  end if;
  for v_iteration in 1 .. 51 loop
    v_wave := pgflow.complete_taskless(pgflow.ready_steps(cascade_complete_taskless_steps.run_id));
    exit when v_wave is null;
    if v_iteration > 50 then
      raise exception 'Cascade loop exceeded safety limit of 50 iterations';
    end if;
    perform pgflow.release_children(v_wave);
    update pgflow.runs r set remaining_steps = r.remaining_steps - cardinality(v_wave)
    where r.run_id = cascade_complete_taskless_steps.run_id;
    v_count := v_count + cardinality(v_wave);
  end loop;
  return v_count;
end
$$;

create or replace function pgflow.start_ready_steps(run_id uuid) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
begin
  if pgflow.hold_run(start_ready_steps.run_id) is not null then
    perform pgflow.start_steps(pgflow.ready_steps(start_ready_steps.run_id));
  end if;
end
$$;

create or replace function pgflow.maybe_complete_run(run_id uuid) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
begin
  if pgflow.hold_run(maybe_complete_run.run_id) is not null then
    perform pgflow.complete_runs(array[maybe_complete_run.run_id]);
  end if;
end
$$;

-- Starting runs.

-- Refuse inputs that the flow's root map steps cannot be made of.
create or replace function pgflow.check_inputs(p_flow_slug text, p_inputs jsonb[]) returns void
language plpgsql stable set search_path = pg_catalog, pgflow as $$
declare
  v_input jsonb;
begin
  if not exists (select from pgflow.steps s where s.flow_slug = p_flow_slug and s.step_type = 'map' and s.deps_count = 0) then
    return;
  end if;
  foreach v_input in array p_inputs loop
    if v_input is null then
      raise exception 'Flow % has root map steps but input is NULL', p_flow_slug;
    elsif jsonb_typeof(v_input) <> 'array' then
      raise exception 'Flow % has root map steps but input is not an array (got %)', p_flow_slug, jsonb_typeof(v_input);
    end if;
  end loop;
end
$$;

-- Start runs of one flow; a bare name, which is also the slug of the first version, starts its newest version, unless
-- p_exact says that it is a slug. A run_id that was used before for the same, of whatever version, is left as it is, so that
-- a start whose commit was not heard of can be repeated; for something else it is refused (PN012).
create or replace function pgflow.begin_runs(
  p_name text, p_inputs jsonb[], p_run_ids uuid[], p_max_waves int, p_notify boolean, p_exact boolean
) returns table (run_id uuid, created boolean)
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_flow text := case when p_exact then (select f.flow_slug from pgflow.flows f where f.flow_slug = p_name)
                      else pgflow.newest_version(p_name) end;
  v_steps int;
  v_ids uuid[];
  v_new uuid[];
  v_clash uuid;
begin
  if v_flow is null then
    raise exception using errcode = 'PN010', message = format('there is no flow "%s"', p_name),
      hint = 'define it with pgflow.create_flow, or start a worker that has it';
  end if;
  perform pgflow.check_inputs(v_flow, p_inputs);
  select count(*) into v_steps from pgflow.steps s where s.flow_slug = v_flow;
  v_ids := array(select coalesce(i.id, gen_random_uuid()) from unnest(p_inputs, p_run_ids) with ordinality as i (input, id, n) order by i.n);
  with started as (
    insert into pgflow.runs as r (run_id, flow_slug, input, remaining_steps)
    select i.id, v_flow, i.input, v_steps from unnest(v_ids, p_inputs) as i (id, input) order by i.id
    on conflict on constraint runs_pkey do nothing
    returning r.run_id
  )
  select array_agg(s.run_id) into v_new from started s;
  if cardinality(v_new) is distinct from cardinality(v_ids) then
    select r.run_id into v_clash from unnest(v_ids, p_inputs) as i (id, input) join pgflow.runs r on r.run_id = i.id
    where r.input <> i.input or (r.flow_slug <> v_flow and r.flow_slug not in (
      select f.flow_slug from pgflow.flows f join pgflow.flows n on n.name = f.name where n.flow_slug = v_flow)) limit 1;
    if found then
      raise exception using errcode = 'PN012', message = format('run_id %s was used before with another flow or input', v_clash);
    end if;
  end if;
  if v_new is not null then
    perform pgflow.begin_steps(v_flow, v_new, p_max_waves);
    if p_notify then
      perform pgflow.notify_runs(v_new);
    end if;
  end if;
  return query select i.id, coalesce(i.id = any (v_new), false) from unnest(v_ids) with ordinality as i (id, n) order by i.n;
end
$$;

create or replace function pgflow.begin_steps(p_flow_slug text, p_run_ids uuid[], p_max_waves int) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_roots pgflow.step_key[];
begin
  insert into pgflow.step_states (run_id, flow_slug, step_slug, remaining_deps, initial_tasks)
  select r.run_id, p_flow_slug, s.step_slug, s.deps_count,
         case when s.step_type <> 'map' then 1 when s.deps_count = 0 then jsonb_array_length(r.input) end
  from unnest(p_run_ids) as i (id) join pgflow.runs r on r.run_id = i.id
  cross join pgflow.steps s where s.flow_slug = p_flow_slug;
  perform pgflow.emit_runs('started', p_run_ids);
  select array_agg(row(p_flow_slug, i.id, s.step_slug)::pgflow.step_key) into v_roots
  from unnest(p_run_ids) as i (id) cross join pgflow.steps s where s.flow_slug = p_flow_slug and s.deps_count = 0;
  perform pgflow.advance(null, v_roots, p_max_waves => p_max_waves);
  perform pgflow.complete_runs(p_run_ids) where v_roots is null;  -- a flow without steps
end
$$;

create or replace function pgflow.start_flows(
  p_flow_slug text, p_inputs jsonb[], p_run_ids uuid[] default null, p_notify boolean default true, p_exact boolean default false
) returns table (run_id uuid, created boolean)
language sql set search_path = pg_catalog, pgflow as $$
  select b.run_id, b.created from pgflow.begin_runs(p_flow_slug, p_inputs, p_run_ids, null, p_notify, p_exact) b
$$;

create or replace function pgflow.start_flow(flow_slug text, input jsonb, run_id uuid default null) returns setof pgflow.runs
language plpgsql set search_path = pg_catalog, pgflow set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  v_run_id uuid;
begin
  select b.run_id into v_run_id
  from pgflow.begin_runs(start_flow.flow_slug, array[start_flow.input], array[start_flow.run_id], 50, true, false) b;
  return query select r.* from pgflow.runs r where r.run_id = v_run_id;
end
$$;

create or replace function pgflow.get_run_with_states(run_id uuid) returns jsonb
language sql stable set search_path = pg_catalog, pgflow as $$
  select jsonb_build_object('run', to_jsonb(r), 'steps', coalesce((
    select jsonb_agg(to_jsonb(st) order by s.step_index)
    from pgflow.step_states st join pgflow.steps s on s.flow_slug = st.flow_slug and s.step_slug = st.step_slug
    where st.run_id = r.run_id), '[]'))
  from pgflow.runs r where r.run_id = get_run_with_states.run_id
$$;

create or replace function pgflow.start_flow_with_states(flow_slug text, input jsonb, run_id uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_run_id uuid;
begin
  select s.run_id into v_run_id
  from pgflow.start_flow(start_flow_with_states.flow_slug, start_flow_with_states.input, start_flow_with_states.run_id) s;
  return pgflow.get_run_with_states(v_run_id);
end
$$;

-- Claiming tasks: by the contract, message by message with a visibility timeout; by ours in batches, where the message
-- is gone and the lease is the worker's sign of life.

-- Claimed tasks with all that a handler wants to know.
create or replace function pgflow.describe_tasks(p_tasks pgflow.task_key[]) returns setof pgflow.claimed_task
language plpgsql stable set search_path = pg_catalog, pgflow as $$
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
language plpgsql stable set search_path = pg_catalog, pgflow as $$
begin
  return (select coalesce(t.output, 'null') from pgflow.deps d
          join pgflow.step_tasks t on t.run_id = p_run_id and t.step_slug = d.dep_slug and t.task_index = p_task_index
          where d.flow_slug = p_flow_slug and d.step_slug = p_step_slug);
end
$$;

-- Set when messages become visible, each by its own offset in seconds from now; returns those that were there.
create or replace function pgflow.set_vt_batch(queue_name text, msg_ids bigint[], vt_offsets int[])
returns table (msg_id bigint, read_ct int, enqueued_at timestamptz, vt timestamptz, message jsonb, headers jsonb)
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
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
language sql set search_path = pg_catalog, pgflow as $$
  select null::pgflow.step_task_record where false
$$;

-- Claim up to p_limit tasks from queues, in their order. Their messages are deleted at once. p_handlers: the actions this
-- worker has, for flows that were built at run time; a task of another action is left for others.
create or replace function pgflow.claim_tasks(p_queues text[], p_worker_id uuid, p_limit int, p_handlers text[] default null)
returns setof pgflow.claimed_task
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language sql stable set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
begin
  perform pgmq.archive(p_queue, p_ids);
  execute format('update pgmq.%I set headers = coalesce(headers, ''{}'') || $2 where msg_id = any ($1)', pgmq.format_table_name(p_queue, 'a'))
  using p_ids, jsonb_build_object('reason', p_reason);
end
$$;

-- Completing tasks. Locks in the order that 34_failures tells.

-- Fail runs in which a map is to be made of what is no array; returns those runs. What else of them was finished by the
-- same tasks ends with them.
create or replace function pgflow.fail_type_violations(p_finished pgflow.step_key[], p_tasks pgflow.task_key[]) returns uuid[]
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
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
language plpgsql set search_path = pg_catalog, pgflow set plan_cache_mode = force_generic_plan as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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

-- Failing and releasing tasks. Locks in the order that 34_failures tells.

-- Fail claimed tasks: back to the queue after a delay (null: the step's backoff), or for good, where no attempt is left
-- or p_final says so; then as the step's when_exhausted says. Fences as in complete_tasks.
create or replace function pgflow.fail_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_errors text[],
  p_final boolean[], p_delays double precision[], p_notify boolean default true
) returns table (outcome text, run_id uuid, step_slug text, task_index int)
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow set plan_cache_mode = force_generic_plan as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
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

-- Deferred tasks: they wait for an answer and hold no worker, no lease and no connection. Whoever has the token ends them
-- in his own transaction; past the deadline they fail.

create or replace function pgflow.defer_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_tokens uuid[],
  p_until timestamptz[], p_details jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
declare
  v_deferred pgflow.task_key[];
begin
  with named as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_task_indexes, p_attempts, p_tokens, p_until, p_details)
      as i (run_id, step_slug, task_index, attempt, token, until, details)
    order by i.run_id, i.step_slug, i.task_index
  ), deferred as (
    update pgflow.step_tasks t
    set deferred_until = i.until, deferral_token = i.token, deferral = i.details, last_worker_id = null
    from named i where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task
  )
  select array_agg(d.task) into v_deferred from deferred d;
  if v_deferred is not null then
    v_deferred := pgflow.keep_open(v_deferred);
    return query
      select t.deferral_token from unnest(v_deferred) k
      join pgflow.step_tasks t on t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  end if;
end
$$;

-- The tasks that still wait for these tokens, with the attempt that waits, in the order of the tokens. The index over
-- tokens is the only one that fits the inner part: that over deadlines looked cheaper while few tasks waited.
create or replace function pgflow.waiting_tasks(p_tokens uuid[])
returns table (token uuid, run_id uuid, step_slug text, task_index int, attempt int, n bigint)
language plpgsql stable set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
begin
  return query
    select i.token, w.run_id, w.step_slug, w.task_index, w.attempts_count, i.n
    from unnest(p_tokens) with ordinality as i (token, n)
    cross join lateral (select t.* from pgflow.step_tasks t where t.deferral_token = i.token offset 0) w
    where w.status = 'started' and w.deferred_until is not null;
end
$$;

-- Complete waiting tasks; returns the tokens whose tasks were completed by this.
create or replace function pgflow.complete_deferred(p_tokens uuid[], p_outputs jsonb[], p_notify boolean default true)
returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
declare
  v_tokens uuid[];
  v_runs uuid[];
  v_steps text[];
  v_indexes int[];
  v_attempts int[];
  v_outputs jsonb[];
begin
  select array_agg(w.token order by w.run_id, w.step_slug, w.task_index), array_agg(w.run_id order by w.run_id, w.step_slug, w.task_index),
         array_agg(w.step_slug order by w.run_id, w.step_slug, w.task_index), array_agg(w.task_index order by w.run_id, w.step_slug, w.task_index),
         array_agg(w.attempt order by w.run_id, w.step_slug, w.task_index), array_agg(p_outputs[w.n] order by w.run_id, w.step_slug, w.task_index)
  into v_tokens, v_runs, v_steps, v_indexes, v_attempts, v_outputs
  from pgflow.waiting_tasks(p_tokens) w;
  if v_tokens is not null then
    return query
      with refused as (
        select c.run_id, c.step_slug, c.task_index
        from pgflow.complete_tasks(null, v_runs, v_steps, v_indexes, v_attempts, v_outputs, p_notify => p_notify) c where c.outcome = 'refused'
      )
      select i.token from unnest(v_tokens, v_runs, v_steps, v_indexes) as i (token, run_id, step_slug, task_index)
      where not exists (select from refused r where r.run_id = i.run_id and r.step_slug = i.step_slug and r.task_index = i.task_index);
  end if;
end
$$;

-- Fail waiting tasks for good, or where p_final says so as a failed attempt; returns the tokens that were waited for.
create or replace function pgflow.fail_deferred(
  p_tokens uuid[], p_errors text[], p_final boolean[] default null, p_notify boolean default true
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
declare
  v_tokens uuid[];
  v_runs uuid[];
  v_steps text[];
  v_indexes int[];
  v_attempts int[];
  v_errors text[];
  v_final boolean[];
begin
  select array_agg(w.token), array_agg(w.run_id), array_agg(w.step_slug), array_agg(w.task_index), array_agg(w.attempt),
         array_agg(p_errors[w.n]), array_agg(coalesce(p_final[w.n], true))
  into v_tokens, v_runs, v_steps, v_indexes, v_attempts, v_errors, v_final
  from (select * from pgflow.waiting_tasks(p_tokens) order by run_id, step_slug, task_index) w;
  if v_tokens is not null then
    return query
      with ended as (
        select f.outcome, f.run_id, f.step_slug, f.task_index
        from pgflow.fail_tasks(null, v_runs, v_steps, v_indexes, v_attempts, v_errors, v_final,
                               array_fill(null::double precision, array[cardinality(v_runs)]), p_notify) f
      )
      select i.token from unnest(v_tokens, v_runs, v_steps, v_indexes) as i (token, run_id, step_slug, task_index)
      join ended e on e.run_id = i.run_id and e.step_slug = i.step_slug and e.task_index = i.task_index and e.outcome <> 'refused';
  end if;
end
$$;

-- Answer a step that waits for a signal: its task completes with the payload. PN011 when it does not wait.
create or replace function pgflow.signal(run_id uuid, step_slug text, payload jsonb, task_index int default 0) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_token uuid;
  v_state text;
begin
  select t.deferral_token into v_token from pgflow.step_tasks t
  where t.run_id = signal.run_id and t.step_slug = signal.step_slug and t.task_index = signal.task_index
    and t.deferred_until is not null and coalesce(t.deferral ->> 'kind', 'signal') = 'signal';
  if exists (select from pgflow.complete_deferred(array[v_token], array[signal.payload])) then
    return;
  end if;
  select format('is %s', st.status) into v_state from pgflow.step_states st
  where st.run_id = signal.run_id and st.step_slug = signal.step_slug;
  raise exception using errcode = 'PN011', message = format(
    'run %s: step %s (task %s) does not wait for a signal: %s', signal.run_id, signal.step_slug, signal.task_index,
    case when not exists (select from pgflow.runs r where r.run_id = signal.run_id) then 'there is no such run'
         else coalesce(v_state, 'the run has no such step') end);
end
$$;

-- Fail waiting tasks whose deadline has passed; returns how many.
create or replace function pgflow.expire_deferred(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
declare
  v_tokens uuid[];
begin
  select array_agg(d.deferral_token) into v_tokens from (
    select t.deferral_token from pgflow.step_tasks t
    where t.deferred_until <= clock_timestamp() order by t.deferred_until limit p_limit for update skip locked) d;
  if v_tokens is null then
    return 0;
  end if;
  perform pgflow.fail_deferred(v_tokens, array_fill('no answer came before its deadline'::text, array[cardinality(v_tokens)]));
  return cardinality(v_tokens);
end
$$;

-- What a handler tells of its progress; false when the task is not this worker's any more.
create or replace function pgflow.report_progress(
  p_worker_id uuid, p_run_id uuid, p_step_slug text, p_task_index int, p_attempt int, p_progress jsonb
) returns boolean
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_task pgflow.task_key[];
begin
  with told as (
    update pgflow.step_tasks t set progress = p_progress
    where t.run_id = p_run_id and t.step_slug = p_step_slug and t.task_index = p_task_index
      and case t.status when 'started' then t.attempts_count = p_attempt and t.last_worker_id = p_worker_id end
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
  )
  select array_agg(row(t.*)::pgflow.task_key) into v_task from told t;
  v_task := pgflow.keep_open(v_task);
  if v_task is null then
    return false;
  end if;
  perform pgflow.notify_runs(array[p_run_id]);
  return true;
end
$$;

-- Chains: flows whose steps are single and follow one another. A worker takes the first step it finds and goes
-- on to the end; each function here does a whole batch of runs in one pass.
--
-- The row of the claimed task is fence and lock: whoever ends a task (completes, fails, releases, recovers,
-- cancels) first changes that row where it is still started by this worker in this attempt, then the step
-- states, then the run. Everybody locks in that order, and batches in the order of their runs. The fence is written as a CASE, so that the row is found by
-- its key: the index of a worker's started tasks is full of those it has ended.

-- Start runs and claim their first task for the worker, without a detour through the flow's queue. A run_id
-- that was used before is left out: the same message, delivered twice, starts nothing twice.
create or replace function pgflow.start_claimed(p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_inputs jsonb[])
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
    from unnest(p_run_ids, p_inputs) as i (id, input) order by i.id
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
create or replace function pgflow.claim_chains(p_flow_slug text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb)
language sql set search_path = pg_catalog, pgflow as $$
  with popped as materialized (
    select case when m.message ->> 'run_id' ~ '^[0-9a-f-]{36}$' then (m.message ->> 'run_id')::uuid end as run_id,
           m.message ->> 'step_slug' as step_slug
    from pgmq.pop(pgflow.queue_name(p_flow_slug), p_limit) as m order by 1
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
create or replace function pgflow.complete_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[], p_outputs jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_done uuid[];
  v_outputs jsonb[];
begin
  with live as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_attempts, p_outputs) as i (run_id, step_slug, attempt, outputs)
    join pgflow.runs r on r.run_id = i.run_id and r.status = 'started'
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
create or replace function pgflow.return_chains(
  p_flow_slug text, p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_attempts int[],
  p_delays double precision[], p_errors text[], p_counts boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_done uuid[];
  v_now pgflow.task_key[];
begin
  with named as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_attempts, p_delays, p_errors)
      as i (run_id, step_slug, attempt, delay, error)
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
    perform pgflow.fail_runs(v_done, v_steps, v_errors);
  end if;
  return query select unnest(v_done);
end
$$;

-- Cancel started chains: their open tasks fail, and with them the runs. Returns those that were cancelled.
create or replace function pgflow.cancel_runs(p_run_ids uuid[]) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow as $$
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
    perform pgflow.fail_runs(v_done, array_fill(null::text, array[cardinality(v_done)]),
                             array_fill('cancelled'::text, array[cardinality(v_done)]), p_cancelled => true);
  end if;
  return query select unnest(v_done);
end
$$;

-- Control of runs and flows by people and programs.

-- Cancel a run; false when it had ended.
create or replace function pgflow.cancel_run(run_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
#variable_conflict use_column
begin
  if exists (select from pgflow.runs r where r.run_id = cancel_run.run_id and r.flow_slug = 'llm_request_workflow') then
    return exists (select from pgflow.cancel_runs(array[cancel_run.run_id]));
  end if;
  if pgflow.hold_run(cancel_run.run_id) is null then
    return false;
  end if;
  perform pgflow.fail_runs(array[cancel_run.run_id], array[null::text], array['cancelled'], p_cancelled => true);
  return true;
end
$$;

-- Take a failed run up again from where it failed: what succeeded, and what was skipped, is kept; failed tasks have all
-- their attempts before them. False when the run has not failed.
create or replace function pgflow.retry_run(run_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_flow text;
  v_restarted pgflow.step_key[];
  v_tasks pgflow.task_key[];
begin
  -- so that nobody prunes it meanwhile; this keeps no other waiting
  perform from pgflow.runs r where r.run_id = retry_run.run_id and r.status = 'failed' for key share;
  if not found then
    return false;
  end if;
  -- all of it, in the order of locks: whoever is ending a task at this moment is through before the run is under way again
  perform from pgflow.step_tasks t where t.run_id = retry_run.run_id order by t.step_slug, t.task_index for no key update;
  perform from pgflow.step_states st where st.run_id = retry_run.run_id order by st.step_slug for no key update;
  perform from pgflow.runs r where r.run_id = retry_run.run_id for no key update;
  select r.flow_slug into v_flow from pgflow.runs r where r.run_id = retry_run.run_id and r.status = 'failed';
  if v_flow is null then
    return false;
  elsif v_flow = 'llm_request_workflow' then
    raise exception using errcode = 'PN002', message = format('run %s is a request: its failure is published; send it anew as retry_of', retry_run.run_id);
  end if;
  update pgflow.runs r set status = 'started', failed_at = null, cancelled_at = null where r.run_id = retry_run.run_id;
  with open as (
    select t.step_slug, t.task_index from pgflow.step_tasks t
    join pgflow.step_states st on st.run_id = t.run_id and st.step_slug = t.step_slug and st.status in ('failed', 'started')
    where t.run_id = retry_run.run_id and t.status = 'failed'
  ), tasks as (
    update pgflow.step_tasks t
    set status = 'queued', attempts_count = 0, requeued_count = 0, failed_at = null, started_at = null, queued_at = clock_timestamp(),
        output = null, message_id = null, permanently_stalled_at = null
    from open o where t.run_id = retry_run.run_id and t.step_slug = o.step_slug and t.task_index = o.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, null::bigint
  )
  select array_agg(row(t.*)::pgflow.task_key) into v_tasks from tasks t;
  with restarted as (
    update pgflow.step_states st
    set status = case when k.open > 0 then 'started' else 'created' end, failed_at = null, error_message = null,
        started_at = case when k.open > 0 then clock_timestamp() end, remaining_tasks = nullif(k.open, 0)
    from (select o.step_slug, (select count(*)::int from pgflow.step_tasks t
                               where t.run_id = retry_run.run_id and t.step_slug = o.step_slug and t.status <> 'completed') as open
          from pgflow.step_states o
          where o.run_id = retry_run.run_id and o.status in ('failed', 'started')) k
    where st.run_id = retry_run.run_id and st.step_slug = k.step_slug
    returning st.flow_slug, st.run_id, st.step_slug, st.status
  )
  select array_agg(row(s.flow_slug, s.run_id, s.step_slug)::pgflow.step_key) filter (where s.status = 'started')
  into v_restarted from restarted s;
  perform pgflow.emit_runs('started', array[retry_run.run_id]);
  perform pgflow.emit_steps('started', v_restarted);
  perform pgflow.send_queued(v_tasks);
  perform pgflow.advance(null, r.ready) from (select pgflow.ready_steps(retry_run.run_id) as ready) r where r.ready is not null;
  perform pgflow.notify_runs(array[retry_run.run_id]);
  return true;
end
$$;

-- From now on nobody claims tasks of the flow, of whatever version; what is claimed goes on.
create or replace function pgflow.pause_flow(flow_slug text) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
begin
  update pgflow.flows f set paused_at = coalesce(f.paused_at, clock_timestamp())
  where f.flow_slug = pause_flow.flow_slug or f.name = pause_flow.flow_slug;
  if not found then
    raise exception using errcode = 'PN010', message = format('there is no flow "%s"', pause_flow.flow_slug);
  end if;
end
$$;

create or replace function pgflow.resume_flow(flow_slug text) returns void
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
begin
  update pgflow.flows f set paused_at = null
  where f.flow_slug = resume_flow.flow_slug or f.name = resume_flow.flow_slug;
  if not found then
    raise exception using errcode = 'PN010', message = format('there is no flow "%s"', resume_flow.flow_slug);
  end if;
  perform pg_notify('pgflow_tasks', '');
end
$$;

-- Instances and their signs of life. A task's lease is its worker's: one row renewed every few seconds for all
-- the tasks a process runs.

-- A sign of life; registers the worker when it is new, and revives one that had been given up. Returns whether
-- it had been given up: its tasks have been handed to others, and whatever it completes of them is refused.
create or replace function pgflow.heartbeat(
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

create or replace function pgflow.mark_worker_stopped(worker_id uuid) returns void
language sql set search_path = pg_catalog, pgflow as $$
  update pgflow.workers w set stopped_at = clock_timestamp() where w.worker_id = mark_worker_stopped.worker_id
$$;

-- Workers that gave no sign of life for as long as their own lease are taken for dead. Those that told no lease are judged
-- by their tasks' time alone, see requeue_stalled_tasks. After a restart of the server everybody is granted one lease to
-- come back.
create or replace function pgflow.bury_workers() returns void
language sql set search_path = pg_catalog, pgflow as $$
  update pgflow.workers w set stopped_at = clock_timestamp()
  where w.worker_id in (
    select d.worker_id from pgflow.workers d
    where d.stopped_at is null and d.last_heartbeat_at < clock_timestamp() - d.lease
      and pg_postmaster_start_time() < clock_timestamp() - d.lease
    for update skip locked)
$$;

-- Give back the tasks of dead workers. An attempt was spent. A task that has none left, or that lost its fifth worker,
-- fails as its step's when_exhausted says: it may be what kills them.
create or replace function pgflow.recover_tasks()
returns table (flow_slug text, run_id uuid, step_slug text, task_index int, exhausted boolean)
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow as $$
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
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
declare
  v_due pgflow.task_key[];
begin
  with due as (
    select t.run_id, t.step_slug, t.task_index from pgflow.step_tasks t
    where t.not_before <= clock_timestamp()
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
            from pgflow.step_tasks t where t.not_before is not null order by t.not_before limit 1);
end
$$;

-- By this name processes of 0.1 call it, which may still run.
create or replace function pgflow.send_due(p_flow_slug text, p_limit int default 1000) returns table (sent int, next_in double precision)
language sql set search_path = pg_catalog, pgflow as $$
  select d.sent, d.next_in from pgflow.send_due_tasks(p_limit) d
$$;

-- By time alone, for workers that keep no lease here: tasks that run for longer than their timeout and 30 seconds go
-- back, three times at most; then their message is archived and they fail. Returns how many went back.
create or replace function pgflow.requeue_stalled_tasks() returns int
language plpgsql set search_path = pg_catalog, pgflow set enable_seqscan = off as $$
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

-- Keeping the tables small.

-- Delete what ended longer ago than the interval: workers, runs with all that is below them, and their messages and
-- archive rows. Runs of LLMRequestWorkflow, too: their outcome is in the books of both sides.
create or replace function pgflow.prune_data_older_than(retention_interval interval) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow as $$
declare
  v_before timestamptz := now() - retention_interval;
  v_queue text;
begin
  for v_queue in select distinct pgflow.queue_of(f.flow_slug) from pgflow.flows f loop
    continue when not exists (select from pgmq.meta m where m.queue_name = v_queue);
    execute format(
      'delete from pgmq.%I a where a.archived_at < $1', pgmq.format_table_name(v_queue, 'a')) using v_before;
    execute format(
      'delete from pgmq.%I q using pgflow.runs r
       where r.run_id = pgflow.message_run_id(q.message) and coalesce(r.completed_at, r.failed_at) < $1',
      pgmq.format_table_name(v_queue, 'q')) using v_before;
  end loop;
  with old as (
    delete from pgflow.runs r where r.status in ('completed', 'failed') and coalesce(r.completed_at, r.failed_at) < v_before
    returning r.run_id
  ), states as (
    delete from pgflow.step_states st using old where st.run_id = old.run_id
  )
  delete from pgflow.step_tasks t using old where t.run_id = old.run_id;
  delete from pgflow.workers w where coalesce(w.stopped_at, w.last_heartbeat_at) < v_before;
end
$$;

-- Schedules: runs that start by the clock. When a schedule fires is computed by its firers (cron and time zones are
-- a library's work), what is due is for the database's clock to say.

create table pgflow.schedules (
  name         text primary key,
  flow_slug    text not null,  -- a bare name, and no foreign key: the newest version at the time, if any is there
  cron         text not null,
  time_zone    text not null default 'UTC',
  input        jsonb not null default 'null',
  catch_up     text not null default 'once',
  next_fire_at timestamptz not null,
  last_fire_at timestamptz,  -- the time for which the last run was started
  last_run_id  uuid,
  paused_at    timestamptz,
  created_at   timestamptz not null default now(),
  last_error   text,         -- of the last firing; null when it started its runs
  constraint name_is_valid check (name ~ '^[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}$'),
  constraint flow_slug_is_valid check (pgflow.is_valid_slug(flow_slug)),
  constraint catch_up_is_valid check (catch_up in ('skip', 'once', 'all')),
  constraint next_fire_at_is_finite check (isfinite(next_fire_at))
);
create index schedules_by_time on pgflow.schedules (next_fire_at) where paused_at is null;

-- Fire schedules: start a run for each of their due times (p_due_names and p_due are parallel, any number a schedule)
-- and store when they are next. One firer wins: who saw another version of the row (see find_schedules) than is
-- there now, or finds it locked, leaves it. The id of a run is made of the schedule's name and the time, so that
-- a time that was fired before starts nothing. A schedule that fails holds up no other: its error is kept, it goes on
-- with its next time. Faults that pass by themselves fire nothing at all; the firer comes back.
create function pgflow.fire_schedules(
  p_names text[], p_versions text[], p_next_fire_ats timestamptz[], p_due_names text[], p_due timestamptz[]
) returns table (name text, error text, is_news boolean)
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_schedule record;
  v_error text;
  v_run_ids uuid[];
  v_inputs jsonb[];
  v_last timestamptz;
begin
  for v_schedule in
    select s.name, s.flow_slug, s.input, s.last_error, p.next_fire_at
    from unnest(p_names, p_versions, p_next_fire_ats) as p (name, version, next_fire_at)
    join pgflow.schedules s on s.name = p.name
    where s.xmin::text = p.version and s.paused_at is null
    order by s.name
    for update of s skip locked
  loop
    v_error := null;
    select array_agg(pgflow.run_id_for('schedule:' || v_schedule.name, t.at) order by d.due),
           array_agg(replace(v_schedule.input::text, '"{scheduled_at}"', to_jsonb(t.at)::text)::jsonb order by d.due),
           max(d.due)
    into v_run_ids, v_inputs, v_last
    from unnest(p_due_names, p_due) as d (name, due)
    cross join lateral (select (to_jsonb(d.due at time zone 'UTC') #>> '{}') || 'Z' as at) as t
    where d.name = v_schedule.name;
    if v_run_ids is not null then
      begin
        perform from pgflow.start_flows(v_schedule.flow_slug, v_inputs, v_run_ids);
      exception when others then
        if left(sqlstate, 2) in ('40', '53', '55', '57', '58') then
          raise;
        end if;
        v_error := left(sqlerrm, 2000);
      end;
    end if;
    update pgflow.schedules s
    set next_fire_at = v_schedule.next_fire_at,
        last_fire_at = case when v_error is null then coalesce(v_last, s.last_fire_at) else s.last_fire_at end,
        last_run_id = case when v_error is null then coalesce(v_run_ids[cardinality(v_run_ids)], s.last_run_id)
                           else s.last_run_id end,
        last_error = case when v_run_ids is null then s.last_error else v_error end
    where s.name = v_schedule.name;
    name := v_schedule.name;
    error := v_error;
    is_news := v_error is not null and v_error is distinct from v_schedule.last_error;
    return next;
  end loop;
end
$$;

-- Requests of steps that ended before them, to be cancelled.
create table pgnexus.abandoned_requests (
  request_id   uuid primary key,
  abandoned_at timestamptz not null default clock_timestamp()
);

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
  perform pgnexus.settle_steps(v_ended);
  if p_notify then
    perform pgnexus.notify_done(v_ended);
  end if;
  return query select e.id, e.message from unnest(v_ended, v_results) as e (id, message);
end
$$;

create or replace function pgnexus.cancel(p_request_ids uuid[]) returns setof uuid
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
    perform pgnexus.settle_steps(v_done);
  end if;
  return query select unnest(v_done);
end
$$;

create or replace function pgnexus.time_out_overdue(p_limit int, p_all boolean default false) returns int
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
  perform pgnexus.settle_steps(v_done);
  if coalesce(cardinality(v_done), 0) < p_limit then
    update pgnexus.sweeps set swept_to = v_now where swept_to < v_now - interval '1 minute';
  end if;
  return coalesce(cardinality(v_done), 0);
end
$$;

create or replace function pgnexus.sweep(p_limit int, p_all boolean default false)
returns table (sent int, timed_out int, next_in double precision)
language plpgsql set search_path = pg_catalog, pgnexus as $$
declare
  v_abandoned int;
begin
  sent := pgnexus.send_due(p_limit);
  timed_out := pgnexus.time_out_overdue(p_limit, p_all);
  delete from pgnexus.idempotency_keys k where k.key in (
    select e.key from pgnexus.idempotency_keys e
    where e.expires_at < clock_timestamp() order by e.expires_at limit p_limit for update skip locked);
  v_abandoned := pgnexus.cancel_abandoned(p_limit);
  next_in := extract(epoch from least(
    (select min(s.due_at) from pgnexus.scheduled_requests s),
    (select j.deadline from pgnexus.job_results j where j.deadline > clock_timestamp()
       order by j.deadline limit 1)) - clock_timestamp());
  if v_abandoned = p_limit then
    next_in := 0;  -- there may be more
  end if;
  return next;
end
$$;

-- LLM steps of flows: a task that waits for the answer to a request ends in the transaction that ends the request.
-- Whoever calls these holds rows of job_results; the tasks', steps' and runs' rows are locked after those, never before.

-- A fault of the moment, and not of what is stored: it is to be raised, so that all is tried once more.
create or replace function pgnexus.is_passing(p_sqlstate text) returns boolean
language sql immutable parallel safe as $$
  select left(p_sqlstate, 2) in ('40', '53', '55', '57', '58')
$$;

-- The tasks that wait for these requests, in the order in which everybody locks them. The index over tokens is the only
-- one that fits the inner part, however few tasks waited when this was planned.
create or replace function pgnexus.waiting_steps(p_request_ids uuid[]) returns setof pgflow.step_tasks
language plpgsql stable
set search_path = pg_catalog, pgnexus set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
begin
  return query
    select w.* from unnest(p_request_ids) i (request_id)
    cross join lateral (select t.* from pgflow.step_tasks t where t.deferral_token = i.request_id offset 0) w
    where w.deferred_until is not null and w.deferral ->> 'kind' = 'llm'
    order by w.run_id, w.step_slug, w.task_index;
end
$$;

-- End the waiting tasks of requests that have just ended; a look into one index when no task waits.
create or replace function pgnexus.settle_steps(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus as $$
declare
  v_waiting uuid[];
begin
  v_waiting := array(select w.deferral_token from pgnexus.waiting_steps(p_request_ids) w);
  if cardinality(v_waiting) > 0 then
    perform pgnexus.settle_or_single_out(v_waiting);
  end if;
end
$$;

-- Settle all at once; if that raises, one by one, so that one run's fault neither undoes the results of others nor
-- keeps them from their runs. What cannot even be failed is left to its deadline.
create or replace function pgnexus.settle_or_single_out(p_tokens uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus as $$
declare
  v_token uuid;
  v_fault text;
begin
  begin
    perform pgnexus.settle_waiting(p_tokens);
    return;
  exception when others then
    if pgnexus.is_passing(sqlstate) then
      raise;
    end if;
  end;
  perform pgnexus.hold_waiting(p_tokens);
  foreach v_token in array p_tokens loop
    v_fault := null;
    begin
      perform pgnexus.settle_waiting(array[v_token]);
    exception when others then
      if pgnexus.is_passing(sqlstate) then
        raise;
      end if;
      v_fault := sqlerrm;
    end;
    if v_fault is not null then
      begin
        perform pgflow.fail_deferred(array[v_token], array[left('the answer cannot be taken in: ' || v_fault, 4000)]);
      exception when others then
        if pgnexus.is_passing(sqlstate) then
          raise;
        end if;
        raise warning 'request %: the step that waits for it is left to its deadline: %', v_token, sqlerrm;
      end;
    end if;
  end loop;
end
$$;

create or replace function pgnexus.settle_waiting(p_tokens uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus as $$
declare
  v_done uuid[];
  v_outputs jsonb[];
  v_failed uuid[];
  v_errors text[];
  v_final boolean[];
begin
  select array_agg(a.token) filter (where a.error is null), array_agg(a.output) filter (where a.error is null),
         array_agg(a.token) filter (where a.error is not null), array_agg(a.error) filter (where a.error is not null),
         array_agg(a.final) filter (where a.error is not null)
  into v_done, v_outputs, v_failed, v_errors, v_final
  from pgnexus.step_answers(p_tokens) a;
  if v_done is not null and v_failed is not null then
    perform pgnexus.hold_waiting(p_tokens);  -- else the second call would lock tasks after the first one's runs
  end if;
  if v_done is not null then
    perform pgflow.complete_deferred(v_done, v_outputs);
  end if;
  if v_failed is not null then
    perform pgflow.fail_deferred(v_failed, v_errors, v_final);
  end if;
end
$$;

-- Hold all that ending these tasks may change, in the order in which everybody locks (see pgflow's 34_failures).
create or replace function pgnexus.hold_waiting(p_tokens uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus set enable_seqscan = off as $$
declare
  v_tasks pgflow.task_key[];
begin
  select array_agg(row(h.*)::pgflow.task_key) into v_tasks from (
    select t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id from pgflow.step_tasks t
    where t.deferral_token = any (p_tokens) and t.deferral_token is not null
    order by t.run_id, t.step_slug, t.task_index for no key update) h;
  perform from pgflow.hold_steps(v_tasks);
  perform pgflow.hold_runs(array(select distinct k.run_id from unnest(v_tasks) k), true);
end
$$;

-- What the requests' ends mean to the tasks that wait for them: an output, or an error, which is final where asking
-- again would not help.
create or replace function pgnexus.step_answers(p_tokens uuid[]) returns table (token uuid, output jsonb, error text, final boolean)
language plpgsql stable set search_path = pg_catalog, pgnexus set enable_seqscan = off as $$
begin
  return query
    select w.deferral_token, a.output, a.error, a.final
    from pgnexus.waiting_steps(p_tokens) w
    join pgnexus.job_results j on j.request_id = w.deferral_token and j.finished_at is not null
    cross join lateral pgnexus.step_answer(j, w.deferral -> 'details') a;
end
$$;

-- p_details: `as` is what of the answer becomes the output: "text", "json" (the JSON in it; `field`: what of that, where
-- the JSON is an object around it) or "result" (all there is to know).
create or replace function pgnexus.step_answer(
  p_request pgnexus.job_results, p_details jsonb, out output jsonb, out error text, out final boolean
)
language plpgsql stable set search_path = pg_catalog, pgnexus as $$
declare
  v_text text := p_request.output ->> 'response';
  v_field text := p_details ->> 'field';
begin
  if p_request.status <> 'success' then
    error := left(format('%s: %s', p_request.error ->> 'type', p_request.error ->> 'message'), 4000);
    final := p_request.error -> 'retryable' is distinct from 'true';
  elsif p_details ->> 'as' = 'result' then
    output := pgnexus.result_of(p_request);
  elsif p_details ->> 'as' = 'json' then
    final := false;
    output := pgnexus.json_in(v_text);
    if output is null then
      error := format('the answer is not JSON: %s', left(v_text, 500));
    elsif v_field is not null and jsonb_typeof(output) = 'object' then
      error := case when not output ? v_field then format('the answer has no field "%s": %s', v_field, left(v_text, 500)) end;
      output := output -> v_field;
    end if;
  else
    output := to_jsonb(coalesce(v_text, ''));
  end if;
end
$$;

-- The JSON that a text is, or that is in its one block of code; null when there is none.
create or replace function pgnexus.json_in(p_text text) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pgnexus as $$
begin
  return coalesce(substring(p_text from '^\s*```(?:json|JSON)?\s*\n(.*)\n\s*```\s*$'), p_text)::jsonb;
exception when data_exception or program_limit_exceeded then
  return null;
end
$$;

-- A stored result in the form of the wire.
create or replace function pgnexus.result_of(p_request pgnexus.job_results) returns jsonb
language sql stable set search_path = pg_catalog, pgnexus as $$
  select case when jsonb_typeof(p_request.output) = 'object' then p_request.output else '{}' end
    || jsonb_strip_nulls(jsonb_build_object(
      'request_id', p_request.request_id, 'status', p_request.status, 'agent_id', p_request.agent_id,
      'model', p_request.model, 'provider', p_request.provider, 'cost', p_request.cost::text,
      'usage', jsonb_build_object(
        'prompt_tokens', coalesce(p_request.prompt_tokens, 0), 'completion_tokens', coalesce(p_request.completion_tokens, 0),
        'total_tokens', coalesce(p_request.total_tokens, 0), 'cached_tokens', coalesce(p_request.cached_tokens, 0)),
      'latency_ms', p_request.duration_ms, 'attempts', p_request.attempts, 'timestamp', p_request.finished_at))
$$;

-- A step that ended otherwise leaves a request behind that may still cost money. Whoever ends steps holds rows of runs and
-- may not lock job_results then, so this only notes it; the sweep cancels it. Definer: the nexus side ends steps, too.
create or replace function pgnexus.abandon_request() returns trigger
language plpgsql security definer set search_path = pg_catalog, pgnexus as $$
begin
  insert into pgnexus.abandoned_requests (request_id)
  select j.request_id from pgnexus.job_results j
  where j.request_id = old.deferral_token and j.status in ('scheduled', 'enqueued')
  on conflict do nothing;
  if found then
    perform pg_notify('pgnexus_abandoned', '');
  end if;
  return null;
end
$$;

create or replace trigger abandon_request after update of deferred_until on pgflow.step_tasks for each row
  when (old.deferred_until is not null and new.status in ('failed', 'queued') and old.deferral ->> 'kind' = 'llm')
  execute function pgnexus.abandon_request();
create or replace trigger abandon_deleted_request after delete on pgflow.step_tasks for each row
  when (old.deferred_until is not null and old.deferral ->> 'kind' = 'llm')
  execute function pgnexus.abandon_request();

-- Cancel requests that no step waits for any more; returns how many were looked at. It waits for no row: what somebody is
-- ending at this moment is left to the next sweep.
create or replace function pgnexus.cancel_abandoned(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgnexus as $$
#variable_conflict use_column
declare
  v_noted uuid[];
  v_open uuid[];
begin
  v_noted := array(select a.request_id from pgnexus.abandoned_requests a order by a.abandoned_at limit p_limit for update skip locked);
  if cardinality(v_noted) = 0 then
    return 0;
  end if;
  v_open := array(
    select j.request_id from pgnexus.job_results j
    where j.request_id = any (v_noted) and j.status in ('scheduled', 'enqueued') for update skip locked);
  perform from pgnexus.cancel(v_open);
  delete from pgnexus.abandoned_requests a
  where a.request_id = any (v_noted) and not exists (
    select from pgnexus.job_results j where j.request_id = a.request_id and j.status in ('scheduled', 'enqueued'));
  return cardinality(v_noted);
end
$$;

create or replace function nexus_api.takes_results(queue_name text) returns boolean
language sql stable security definer set search_path = pg_catalog, nexus_api as $$
  select queue_name not like 'ai\_requests%'
     and not exists (select from pgflow.flows f
                     where coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) = takes_results.queue_name)
     and exists (select from pgmq.meta m where m.queue_name = takes_results.queue_name)
$$;

create or replace function nexus_api.queue_metrics()
returns table (queue text, depth bigint, ready bigint, oldest_seconds int, archived bigint)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api as $$
declare
  v_queue text;
begin
  for v_queue in
    select m.queue_name from pgmq.meta m order by m.queue_name
  loop
    return query execute format(
      'select %L::text, q.queue_length, (select count(*) from pgmq.%I v where v.vt <= clock_timestamp()), q.oldest_msg_age_sec,
              (select count(*) from pgmq.%I) from pgmq.metrics(%1$L) q',
      v_queue, pgmq.format_table_name(v_queue, 'q'), pgmq.format_table_name(v_queue, 'a'));
  end loop;
end
$$;
