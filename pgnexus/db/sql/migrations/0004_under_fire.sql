-- Under fire, and fast: what hostile names could do is closed, plans are kept, requests that go well store less, and what is
-- old can go.

drop function nexus.answer_ended(uuid[], jsonb[]);
drop function pgnexus.store_messages(text, pgmq.message_record[], boolean);

-- Indexes that nobody reads by: pgmq compares vt with a clock that moves.
drop index if exists pgmq.q_ai_requests_interactive_vt_idx;
drop index if exists pgmq.q_ai_requests_vt_idx;
drop index if exists pgmq.q_ai_requests_batch_vt_idx;
drop index if exists pgmq.q_ai_results_vt_idx;

-- A task does not outlive its knowledge of a worker that was deleted. A foreign key would say the same, at the price
-- of a look-up and a row lock for every claim, and of one walk over all tasks for every deleted worker.
create or replace function pgflow.forget_workers() returns trigger
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  update pgflow.step_tasks t set last_worker_id = null from gone g where t.last_worker_id = g.worker_id;
  return null;
end
$$;

-- Where a flow's messages go; null for a flow that is not defined.
create or replace function pgflow.queue_of(flow_slug text) returns text
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return (select coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) from pgflow.flows f
          where f.flow_slug = queue_of.flow_slug);
end
$$;

-- Whether a queue of that name is there and is somebody else's: a request lane, another flow's, or one with messages
-- that name no flow.
create or replace function pgflow.is_foreign_queue(p_queue text, p_flow_slug text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- Who called: in a SECURITY DEFINER function current_user is its owner, and what SET ROLE said still stands.
create or replace function pgflow.caller() returns name
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select coalesce(nullif(current_setting('role', true), 'none'), session_user)::name
$$;

-- Whether a queue is there, and whoever called may delete from it: anybody may write a queue's name into a flow's row.
create or replace function pgflow.may_empty(p_queue text) returns boolean
language sql stable security definer set search_path = pg_catalog, pgflow, pg_temp as $$
  select coalesce(has_table_privilege(pgflow.caller(), to_regclass(format('pgmq.%I', pgmq.format_table_name(m.queue_name, 'q'))),
                                      'delete'), false)
  from pgmq.meta m where m.queue_name = p_queue
$$;

-- Create a queue and let both sides use it, whatever role asks. A queue that is there and closed to one of them is somebody
-- else's: only its owner opens it.
create or replace function pgflow.create_queue(p_queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_role text;
  v_queue text := pgmq.format_table_name(p_queue, 'q');
  v_archive text := pgmq.format_table_name(p_queue, 'a');
  v_owner oid := (select c.relowner from pg_class c where c.oid = to_regclass(format('pgmq.%I', v_queue)));
begin
  if v_owner is not null and not pg_has_role(pgflow.caller(), v_owner, 'usage') then
    if exists (
      select from pg_roles r, unnest(array[v_queue, v_archive]) as t (name), unnest('{select,insert,update,delete}'::text[]) as p (may)
      where r.rolname in ('pgnexus_caller', 'pgnexus_nexus')
        and not has_table_privilege(r.oid, to_regclass(format('pgmq.%I', t.name)), p.may))
    then
      raise exception using errcode = '42501',
        message = format('queue "%s" is somebody else''s: its owner may open it to both sides', p_queue);
    end if;
    return;
  elsif v_owner is null and not exists (select from pgmq.meta m where m.queue_name = p_queue) then
    perform pgmq.create(p_queue);
  end if;
  for v_role in select rolname from pg_roles where rolname in ('pgnexus_caller', 'pgnexus_nexus') loop
    execute format('grant select, insert, update, delete on pgmq.%I, pgmq.%I to %I', v_queue, v_archive, v_role);
  end loop;
end
$$;

create or replace function pgflow.create_flow(
  flow_slug text, max_attempts int default null, base_delay int default null, timeout int default null
) returns pgflow.flows
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- Shapes: a flow's graph as JSON, so that code and database can be compared. Options are applied, not compared.
create or replace function pgflow.is_local() returns boolean
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select lower(coalesce(current_setting('pgflow.is_local', true), '')) in ('on', 'true', '1', 'yes')
$$;

create or replace function pgflow.compare_step_shapes(p_index int, p_local jsonb, p_db jsonb) returns text[]
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
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
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- Delete a flow with its runs, its messages and its queue, unless the queue is somebody else's, whatever the flow's row says.
create or replace function pgflow.delete_flow_and_data(p_flow_slug text) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow, pg_temp as $$
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
  elsif pgflow.may_empty(v_queue) and not pgflow.is_foreign_queue(v_queue, p_flow_slug) then
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

-- The newest version of a name, or the slug itself where it is no name; null when there is neither.
create or replace function pgflow.newest_version(p_name text) returns text
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return coalesce(
    (select f.flow_slug from pgflow.flows f where f.name = p_name order by f.version desc limit 1),
    (select f.flow_slug from pgflow.flows f where f.flow_slug = p_name));
end
$$;

-- Compile a flow for the code that runs it: the version of its name that has this shape, or a new one,
-- `name__vN`. Options and definition follow the code.
create or replace function pgflow.compile_flow(p_name text, p_shape jsonb, p_definition jsonb default null)
returns table (flow_slug text, queue_name text, created boolean)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select to_regprocedure('realtime.send(jsonb,text,text,boolean)') is not null
$$;

-- Ids only, and in portions: a payload of 8,000 bytes would abort the transaction.
create or replace function pgflow.notify_runs(p_run_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- Put tasks' messages onto their flows' queues, p_delay seconds from now; returns the tasks with their message_id.
create or replace function pgflow.send_messages(p_tasks pgflow.task_key[], p_delay int default 0) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- What the states of a chain's steps are while none is stored: nothing that its run does not tell. Four rows a request, written
-- and changed once more, were a fifth of its WAL. One that fails has them stored, for there a step has something to tell.
create or replace function pgflow.untold_states(p_run_ids uuid[]) returns setof pgflow.step_states
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return query
    select r.run_id, r.flow_slug, s.step_slug, r.started_at, d.status, case d.status when 'started' then 1 when 'completed' then 0 end,
           1, case d.status when 'created' then s.deps_count else 0 end, null::jsonb, null::text, null::text,
           case when s.deps_count = 0 then r.started_at else r.completed_at end, r.completed_at, null::timestamptz, null::timestamptz
    from unnest(p_run_ids) as i (run_id)
    cross join lateral (select * from pgflow.runs r where r.run_id = i.run_id and r.status <> 'failed' limit 1) r
    join pgflow.steps s on s.flow_slug = r.flow_slug
    cross join lateral (
      select case when r.status = 'completed' then 'completed' when s.deps_count = 0 then 'started' else 'created' end as status) d
    where not exists (select from pgflow.step_states st where st.run_id = r.run_id);
end
$$;

-- Store the states of chains that are about to end in any other way than by complete_chains, or to be looked after by what knows
-- steps only by their states. Whoever calls it holds the runs' tasks.
create or replace function pgflow.tell_states(p_run_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  insert into pgflow.step_states select u.* from pgflow.untold_states(p_run_ids) u order by u.run_id, u.step_slug on conflict do nothing;
end
$$;

-- A run's states, also of a chain that stores none.
create or replace function pgflow.states_of(p_run_id uuid) returns setof pgflow.step_states
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return query select st.* from pgflow.step_states st where st.run_id = p_run_id;
  if not found then
    return query select u.* from pgflow.untold_states(array[p_run_id]) u;
  end if;
end
$$;

-- Hold the rows of the tasks' steps, in order.
create or replace function pgflow.hold_steps(p_tasks pgflow.task_key[]) returns setof pgflow.step_states
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return pgflow.keep_live(p_tasks, pgflow.hold_runs(array(select distinct k.run_id from unnest(p_tasks) k), false));
end
$$;

-- The same where the runs are held; p_live are those that are under way.
create or replace function pgflow.keep_live(p_tasks pgflow.task_key[], p_live uuid[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_open pgflow.task_key[];
  v_late pgflow.task_key[];
begin
  select array_agg(k) filter (where l.is_open), array_agg(k) filter (where not l.is_open) into v_open, v_late
  from unnest(p_tasks) k cross join lateral (
    select k.run_id = any (p_live) and coalesce((  -- chains store no states while they are under way
      select st.status = 'started' from pgflow.step_states st where st.run_id = k.run_id and st.step_slug = k.step_slug), true) as is_open) l;
  if v_late is not null then
    perform pgflow.void_tasks(v_late);
  end if;
  return v_open;
end
$$;

-- End the open tasks of runs, or of some of their steps; whoever works on one finds its completion refused.
create or replace function pgflow.end_open_tasks(p_run_ids uuid[], p_step_slugs text[], p_error text) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- The steps of a run that wait for nothing and have not begun.
create or replace function pgflow.ready_steps(p_run_id uuid) returns pgflow.step_key[]
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select array_agg(row(st.flow_slug, st.run_id, st.step_slug)::pgflow.step_key order by s.step_index)
  from pgflow.step_states st join pgflow.steps s on s.flow_slug = st.flow_slug and s.step_slug = st.step_slug
  where st.run_id = p_run_id and st.status = 'created' and st.remaining_deps = 0
$$;

-- Hold a run's row; null when it is not under way.
create or replace function pgflow.hold_run(p_run_id uuid) returns uuid
language sql volatile set search_path = pg_catalog, pgflow, pg_temp as $$
  select r.run_id from pgflow.runs r where r.run_id = p_run_id and r.status = 'started' for no key update
$$;

-- Resolve the conditions of a run's ready steps to the fixpoint; false when that failed the run.
create or replace function pgflow.cascade_resolve_conditions(run_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
#variable_conflict use_column
begin
  if pgflow.hold_run(start_ready_steps.run_id) is not null then
    perform pgflow.start_steps(pgflow.ready_steps(start_ready_steps.run_id));
  end if;
end
$$;

create or replace function pgflow.maybe_complete_run(run_id uuid) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
#variable_conflict use_column
begin
  if pgflow.hold_run(maybe_complete_run.run_id) is not null then
    perform pgflow.complete_runs(array[maybe_complete_run.run_id]);
  end if;
end
$$;

-- Refuse inputs that the flow's root map steps cannot be made of.
create or replace function pgflow.check_inputs(p_flow_slug text, p_inputs jsonb[]) returns void
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
  select b.run_id, b.created from pgflow.begin_runs(p_flow_slug, p_inputs, p_run_ids, null, p_notify, p_exact) b
$$;

create or replace function pgflow.start_flow(flow_slug text, input jsonb, run_id uuid default null) returns setof pgflow.runs
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set plan_cache_mode = force_generic_plan as $$
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
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select jsonb_build_object('run', to_jsonb(r), 'steps', coalesce((
    select jsonb_agg(to_jsonb(st) order by s.step_index)
    from pgflow.states_of(r.run_id) st join pgflow.steps s on s.flow_slug = st.flow_slug and s.step_slug = st.step_slug), '[]'))
  from pgflow.runs r where r.run_id = get_run_with_states.run_id
$$;

create or replace function pgflow.start_flow_with_states(flow_slug text, input jsonb, run_id uuid default null) returns jsonb
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
#variable_conflict use_column
declare
  v_run_id uuid;
begin
  select s.run_id into v_run_id
  from pgflow.start_flow(start_flow_with_states.flow_slug, start_flow_with_states.input, start_flow_with_states.run_id) s;
  return pgflow.get_run_with_states(v_run_id);
end
$$;

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

-- Deferred tasks: they wait for an answer and hold no worker, no lease and no connection. Whoever has the token ends them
-- in his own transaction; past the deadline they fail.
create or replace function pgflow.defer_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_tokens uuid[],
  p_until timestamptz[], p_details jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- Cancel a run; false when it had ended.
create or replace function pgflow.cancel_run(run_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

-- Delete what ended longer ago than the interval: workers, runs with all that is below them, and their messages and
-- archive rows. Runs of LLMRequestWorkflow, too: their outcome is in the books of both sides.
create or replace function pgflow.prune_data_older_than(retention_interval interval) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_before timestamptz := now() - retention_interval;
  v_queue text;
begin
  for v_queue in select distinct pgflow.queue_of(f.flow_slug) from pgflow.flows f loop
    continue when not pgflow.may_empty(v_queue);
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

-- When somebody last began to prune which part, so that one process does it for all.
create table pgflow.prunings (
  part     text primary key,
  begun_at timestamptz not null
);

-- The smallest UUIDv7 of a moment.
create function pgflow.uuid_floor(moment timestamptz) returns uuid
language sql immutable parallel safe as $$
  select (lpad(to_hex(floor(extract(epoch from moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Whether it is the caller's turn: that of the first to ask when p_every has passed.
create function pgflow.begin_pruning(p_part text, p_every interval) returns boolean
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  if exists (select from pgflow.prunings p where p.part = p_part and p.begun_at > clock_timestamp() - p_every) then
    return false;
  end if;
  insert into pgflow.prunings as p (part, begun_at) values (p_part, clock_timestamp())
  on conflict (part) do update set begun_at = excluded.begun_at where p.begun_at <= clock_timestamp() - p_every;
  return found;
end
$$;

-- Delete runs with all that is below them, or only tell what they have.
create function pgflow.delete_runs(p_run_ids uuid[], p_dry boolean, out removed bigint, out bytes bigint)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
begin
  select count(*) filter (where s.is_run), coalesce(sum(s.size), 0) into removed, bytes
  from (
    select true as is_run, 150 + coalesce(pg_column_size(r.input), 0) + coalesce(pg_column_size(r.output), 0) as size
    from pgflow.runs r where r.run_id = any (p_run_ids)
    union all
    select false, 150 + coalesce(pg_column_size(st.output), 0) from pgflow.step_states st where st.run_id = any (p_run_ids)
    union all
    select false, 200 + coalesce(pg_column_size(t.output), 0) + coalesce(pg_column_size(t.input), 0)
    from pgflow.step_tasks t where t.run_id = any (p_run_ids)) s;
  if not p_dry then
    delete from pgflow.runs r where r.run_id = any (p_run_ids);
    delete from pgflow.step_states st where st.run_id = any (p_run_ids);
    delete from pgflow.step_tasks t where t.run_id = any (p_run_ids);
  end if;
end
$$;

-- Runs of flows that ended before, the oldest first; those of requests are the nexus side's, see nexus.prune_runs.
create function pgflow.prune_runs(p_keep interval, p_after text, p_limit int, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_time timestamptz := coalesce(nullif(split_part(p_after, '/', 1), ''), '-infinity')::timestamptz;
  v_id uuid := coalesce(nullif(split_part(p_after, '/', 2), ''), '00000000-0000-0000-0000-000000000000')::uuid;
  v_slice uuid[];
  v_old uuid[];
begin
  v_slice := array(
    select r.run_id from pgflow.runs r
    where r.started_at >= v_time and r.started_at < v_before and r.flow_slug <> 'llm_request_workflow'
      and (r.started_at, r.run_id) > (v_time, v_id)
    order by r.started_at, r.run_id limit p_limit);
  v_old := array(
    select r.run_id from pgflow.runs r
    where r.run_id = any (v_slice) and r.status <> 'started' and coalesce(r.completed_at, r.failed_at) < v_before
    for update skip locked);
  resume := case when cardinality(v_slice) = p_limit then (
    select (to_jsonb(r.started_at) #>> '{}') || '/' || v_slice[p_limit] from pgflow.runs r where r.run_id = v_slice[p_limit]) end;
  select d.removed, d.bytes into removed, bytes from pgflow.delete_runs(v_old, p_dry) d;
  return next;
end
$$;

-- What lies in queues' archives since before then. One slice is p_limit messages, whichever queue they are of.
create function pgflow.prune_archives(p_queues text[], p_keep interval, p_limit int, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_queue text;
  v_removed bigint;
  v_bytes bigint;
begin
  removed := 0;
  bytes := 0;
  foreach v_queue in array p_queues loop
    continue when to_regclass(format('pgmq.%I', pgmq.format_table_name(v_queue, 'a'))) is null;
    execute format(case when p_dry then
      'select count(*), coalesce(sum(100 + coalesce(pg_column_size(a.message), 0)), 0) from pgmq.%I a where a.archived_at < $1'
    else
      'with gone as (
         delete from pgmq.%1$I a where a.msg_id in (
           select b.msg_id from pgmq.%1$I b where b.archived_at < $1 order by b.archived_at limit $2 for update skip locked)
         returning 100 + coalesce(pg_column_size(a.message), 0) as size)
       select count(*), coalesce(sum(g.size), 0) from gone g' end, pgmq.format_table_name(v_queue, 'a'))
    into v_removed, v_bytes using v_before, p_limit - removed;
    removed := removed + v_removed;
    bytes := bytes + v_bytes;
    exit when not p_dry and removed >= p_limit;
  end loop;
  resume := case when not p_dry and removed >= p_limit then 'more' end;
  return next;
end
$$;

-- The archives of the flows' queues.
create function pgflow.prune_flow_archives(p_keep interval, p_limit int, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text)
language sql set search_path = pg_catalog, pgflow, pg_temp as $$
  select p.* from pgflow.prune_archives(
    array(select distinct pgflow.queue_of(f.flow_slug) from pgflow.flows f order by 1), p_keep, p_limit, p_dry) p
$$;

-- Instances that left, or fell silent, before then, and before all that is stored began, so that no task has been theirs. A
-- day at least they are kept: one that froze and wakes up must find its row, to hear from it that it had been given up.
create function pgflow.prune_workers(p_keep interval, p_limit int, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - greatest(p_keep, interval '1 day');
  v_old uuid[];
begin
  v_before := least(v_before, (
    select r.started_at from pgflow.runs r where r.flow_slug <> 'llm_request_workflow' order by r.started_at limit 1));
  v_old := array(
    select w.worker_id from pgflow.workers w cross join lateral (select coalesce(w.stopped_at, w.last_heartbeat_at) as at) l
    where l.at < v_before and not exists (
      select from pgflow.runs r where r.run_id < pgflow.uuid_floor(l.at) and r.flow_slug = 'llm_request_workflow')
    order by l.at limit p_limit
    for update of w skip locked);
  removed := cardinality(v_old);
  bytes := removed * 150;
  if not p_dry and removed > 0 then
    delete from pgflow.workers w where w.worker_id = any (v_old);
  end if;
  return next;
end
$$;

-- Fire schedules: start a run for each of their due times (p_due_names and p_due are parallel, any number a schedule)
-- and store when they are next. One firer wins: who saw another version of the row (see find_schedules) than is
-- there now, or finds it locked, leaves it. The id of a run is made of the schedule's name and the time, so that
-- a time that was fired before starts nothing. A schedule that fails holds up no other: its error is kept, it goes on
-- with its next time. Faults that pass by themselves fire nothing at all; the firer comes back.
create or replace function pgflow.fire_schedules(
  p_names text[], p_versions text[], p_next_fire_ats timestamptz[], p_due_names text[], p_due timestamptz[]
) returns table (name text, error text, is_news boolean)
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
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

create or replace function pgnexus.home() returns text
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select current_database() || ' ' || i.id from pgnexus.installation i
$$;

-- Monthly partitions of job_results: made ahead of time, dropped when all that is in them may go.
--
-- To attach or drop one takes for a moment a lock that excludes everybody else. Who waits for that lock, and all
-- who come after it, stand in line behind the longest transaction, so nobody here waits for longer than lock_timeout: it
-- is tried again later. (Detaching CONCURRENTLY would not wait, but PostgreSQL refuses it beside a default partition.)
create or replace function pgnexus.ensure_partitions(p_from timestamptz default now(), p_months int default 3) returns int
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp set lock_timeout = '200ms' as $$
declare
  v_month timestamptz;
  v_name text;
  v_low uuid;
  v_high uuid;
  v_made int := 0;
begin
  if not pg_try_advisory_xact_lock(hashtext('pgnexus.partitions')) then
    return 0;  -- somebody else is at it
  end if;
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
exception when lock_not_available then
  return 0;  -- nothing was made
end
$$;

-- As it came, in the order given; that a request_id stands here once is for mark_repeats to see to. It sets no search_path, so that
-- it becomes a part of the statement that calls it, whose plan is kept.
create or replace function pgnexus.read_requests(p_requests jsonb[], p_now timestamptz) returns setof pgnexus.incoming
language sql stable as $$
  select e.ordinal::int, t.request_id,
         e.element - '{timeout,delay,not_before,idempotency_key,idempotency_ttl,workflow,instance_id,job_id}'::text[]
           || jsonb_strip_nulls(jsonb_build_object(
                'v', coalesce(e.element -> 'v', '1'),
                'request_id', t.request_id,
                'complexity', coalesce(e.element ->> 'complexity', pgnexus.complexity_for(e.element ->> 'task_type')),
                'priority', coalesce(e.element ->> 'priority', 'standard'),
                'deadline', d.deadline)),
         t.due_at, d.deadline,
         case when e.element ?| '{idempotency_key,idempotency_ttl,workflow,instance_id,job_id}' then e.element else '{}' end,
         true
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

-- The first of those with the same request_id is new, the others are not.
create function pgnexus.mark_repeats(p_items pgnexus.incoming[]) returns pgnexus.incoming[]
language sql immutable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select array_agg(row(i.ordinal, i.request_id, i.message, i.due_at, i.deadline, i.options, i.n = 1)::pgnexus.incoming order by i.ordinal)
  from (select r.*, row_number() over (partition by r.request_id order by r.ordinal) as n from unnest(p_items) r) i
$$;

-- A message as it travels: what says no more than its absence would is left out, for it is stored twice more on its way.
create function pgnexus.to_send(p_message jsonb) returns jsonb
language sql immutable parallel safe as $$
  select p_message - array[case when p_message ->> 'model' = 'auto' then 'model' else '' end,
                           case when p_message ->> 'provider' = 'auto' then 'provider' else '' end,
                           case when p_message ->> 'reply_to' = 'ai_results' then 'reply_to' else '' end]
$$;

-- Put messages on a lane. (pgmq's own function plans its statements anew each time, three deep.)
create function pgnexus.send_requests(p_lane text, p_messages jsonb[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  if p_lane = 'ai_requests' then
    insert into pgmq.q_ai_requests (vt, message) select clock_timestamp(), m from unnest(p_messages) m;
  elsif p_lane = 'ai_requests_interactive' then
    insert into pgmq.q_ai_requests_interactive (vt, message) select clock_timestamp(), m from unnest(p_messages) m;
  elsif p_lane = 'ai_requests_batch' then
    insert into pgmq.q_ai_requests_batch (vt, message) select clock_timestamp(), m from unnest(p_messages) m;
  else
    raise exception 'there is no lane "%"', p_lane;
  end if;
end
$$;

-- Refuse what could never be answered, before anything is stored. SQLSTATE PN002.
create or replace function pgnexus.check_requests(p_items pgnexus.incoming[]) returns void
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
create or replace function pgnexus.claim_keys(p_items pgnexus.incoming[], p_now timestamptz) returns pgnexus.incoming[]
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
create or replace function pgnexus.enqueue(requests jsonb[], notify boolean default true)
returns table (ordinal int, request_id uuid, status text, created boolean)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_items pgnexus.incoming[];
  v_new pgnexus.incoming[];
  v_stored uuid[];
  v_odd boolean;
  v_keys boolean;
  v_ids uuid[];
  v_lane text;
  v_messages jsonb[];
  v_clash uuid;
begin
  -- odd is what check_requests must look at; most are not (offset 0: read once, not once for each use)
  select array_agg(i),
         bool_or(jsonb_typeof(i.message -> 'messages') is distinct from 'array' or i.message -> 'messages' = '[]'
                 or (i.message ->> 'priority') not in ('interactive', 'standard', 'batch')
                 or (i.message ->> 'complexity') not in ('simple', 'medium', 'complex', 'auto')
                 or i.message ->> 'reply_to' <> 'ai_results' or i.due_at is not null
                 or not coalesce(i.deadline between '2000-01-01' and '9000-01-01', true)),
         bool_or(i.options ? 'idempotency_key'), array_agg(i.request_id)
  into v_items, v_odd, v_keys, v_ids
  from (select r.* from pgnexus.read_requests(requests, v_now) r offset 0) i;
  if v_items is null then
    return;
  end if;
  if v_odd then
    perform pgnexus.check_requests(v_items);
  end if;
  if (select count(distinct d.id) < count(*) from unnest(v_ids) as d (id)) then
    v_items := pgnexus.mark_repeats(v_items);
  end if;
  if v_keys then
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

  v_new := v_items;
  if cardinality(v_stored) is distinct from cardinality(v_items) then
    select i.request_id into v_clash
    from unnest(v_items) i join pgnexus.job_results j on j.request_id = i.request_id
    where j.input <> pgnexus.request_body(i.message) limit 1;
    if found then
      raise exception using errcode = 'PN001',
        message = format('request_id %s was used before with another body', v_clash);
    end if;
    v_new := array(select i from unnest(v_items) i join unnest(v_stored) s (id) on s.id = i.request_id where i.is_new order by i.ordinal);
  end if;

  for v_lane, v_messages in
    select pgnexus.lane(i.message ->> 'priority'), array_agg(pgnexus.to_send(i.message) order by i.ordinal)
    from unnest(v_new) i where (i.due_at <= v_now) is not false
    group by 1
  loop
    perform pgnexus.send_requests(v_lane, v_messages);
  end loop;
  if v_odd then  -- as those that may not run yet are
    insert into pgnexus.scheduled_requests (request_id, due_at, queue, message)
    select i.request_id, i.due_at, pgnexus.lane(i.message ->> 'priority'), i.message
    from unnest(v_new) i where i.due_at > v_now;
  end if;

  if notify and v_stored is not null then
    perform pg_notify('pgnexus_requests', '');
  end if;
  if cardinality(v_new) = cardinality(v_items) then
    return query
      select i.ordinal, i.request_id, case when i.due_at > v_now then 'scheduled' else 'enqueued' end, true from unnest(v_items) i;
  else
    return query
      select i.ordinal, i.request_id, j.status, i.is_new and coalesce(i.request_id = any (v_stored), false)
      from unnest(v_items) i join pgnexus.job_results j on j.request_id = i.request_id
      order by i.ordinal;
  end if;
end
$$;

-- The same out of JSON: a number, which is the usual form, needs no look at its digits.
create function pgnexus.read_count(p_value jsonb) returns bigint
language sql immutable parallel safe as $$
  select case jsonb_typeof(p_value)
    when 'number' then case when p_value::numeric between 0 and 999999999999999 and p_value::numeric = trunc(p_value::numeric)
                            then p_value::numeric::bigint end
    when 'string' then pgnexus.try_count(p_value #>> '{}') end
$$;

-- A result message as columns of job_results. One row a message, also for a message that is none: then
-- request_id is null.
create or replace function pgnexus.read_results(p_messages jsonb[]) returns table (
  ordinal bigint, request_id uuid, status text, agent_id text, model text, provider text, output jsonb, error jsonb,
  prompt_tokens bigint, completion_tokens bigint, total_tokens bigint, cached_tokens bigint, cost numeric,
  duration_ms bigint, attempts int, message jsonb, reasoning_tokens bigint, cache_write_tokens bigint)
language sql immutable as $$
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
         pgnexus.read_count(u.usage -> 'prompt_tokens'),
         pgnexus.read_count(u.usage -> 'completion_tokens'),
         coalesce(pgnexus.read_count(u.usage -> 'total_tokens'),
                  pgnexus.read_count(u.usage -> 'prompt_tokens') + pgnexus.read_count(u.usage -> 'completion_tokens')),
         pgnexus.read_count(u.usage -> 'cached_tokens'),
         pgnexus.try_amount(m.message ->> 'cost'),
         pgnexus.read_count(m.message -> 'latency_ms'),
         least(coalesce(pgnexus.read_count(m.message -> 'attempts'), 0), 2147483647)::int,
         m.message,
         nullif(pgnexus.read_count(u.usage -> 'reasoning_tokens'), 0),
         nullif(pgnexus.read_count(u.usage -> 'cache_write_tokens'), 0)
  from unnest(p_messages) with ordinality as m (message, ordinal)
  cross join lateral (select m.message -> 'usage' as usage) u
$$;

-- Record results, in the order given, each at its terminal state if its request has none yet. Returns the requests that they
-- ended. A result whose request was never stored here is stored all the same.
create function pgnexus.end_requests(p_messages jsonb[], p_notify boolean) returns uuid[]
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_ended uuid[];
begin
  with firsts as (
    select distinct on (r.request_id) r.ordinal, r.request_id, r.status, r.agent_id, r.model, r.provider, r.output, r.error,
           r.prompt_tokens, r.completion_tokens, r.total_tokens, r.cached_tokens, r.cost, r.duration_ms, r.attempts,
           r.reasoning_tokens, r.cache_write_tokens
    from pgnexus.read_results(p_messages) r
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
    returning j.request_id
  )
  select array_agg(u.request_id) into v_ended from updated u;
  if cardinality(v_ended) is distinct from cardinality(p_messages) then
    v_ended := v_ended || pgnexus.store_strays(p_messages);
    perform pgnexus.book_late_results(p_messages, v_ended);
  end if;
  perform pgnexus.settle_steps(v_ended);
  if p_notify then
    perform pgnexus.notify_done(v_ended);
  end if;
  return v_ended;
end
$$;

-- Results of requests that were never stored here.
create function pgnexus.store_strays(p_messages jsonb[]) returns uuid[]
language sql set search_path = pg_catalog, pgnexus, pg_temp as $$
  with inserted as (
    insert into pgnexus.job_results as j (
      request_id, status, workflow, agent_id, model, provider, output, error, prompt_tokens, completion_tokens,
      total_tokens, cached_tokens, cost, duration_ms, attempts, finished_at, reasoning_tokens, cache_write_tokens)
    select distinct on (f.request_id)
           f.request_id, f.status, 'LLMRequestWorkflow', f.agent_id, f.model, f.provider, f.output, f.error,
           f.prompt_tokens, f.completion_tokens, f.total_tokens, f.cached_tokens, f.cost, f.duration_ms, f.attempts,
           clock_timestamp(), f.reasoning_tokens, f.cache_write_tokens
    from pgnexus.read_results(p_messages) f
    where f.request_id is not null and not exists (select from pgnexus.job_results k where k.request_id = f.request_id)
    order by f.request_id, f.ordinal
    on conflict do nothing
    returning j.request_id
  )
  select array_agg(i.request_id) from inserted i
$$;

-- The same, with the results that ended their requests.
create or replace function pgnexus.record_results(p_messages jsonb[], p_notify boolean default true)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
begin
  return query select e.request_id, e.result from pgnexus.ended_by(p_messages, pgnexus.end_requests(p_messages, p_notify), null) e;
end
$$;

-- Which of the messages ended these requests: the first of each. With p_wanted only those of it have their result with them.
create function pgnexus.ended_by(p_messages jsonb[], p_ended uuid[], p_wanted uuid[]) returns table (request_id uuid, result jsonb)
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
begin
  if p_wanted = '{}' then
    return query select e.id, null::jsonb from unnest(p_ended) as e (id);
  else
    return query
      select distinct on (e.id) e.id, case when w.id is not null or p_wanted is null then m.message end
      from unnest(p_messages) with ordinality as m (message, ordinal)
      join unnest(p_ended) as e (id) on e.id = pgnexus.try_uuid(m.message ->> 'request_id')
      left join unnest(p_wanted) as w (id) on w.id = e.id
      order by e.id, m.ordinal;
  end if;
end
$$;

-- What a late answer used is paid for, once; calls that used nothing are counted all the same.
create or replace function pgnexus.book_late_results(p_messages jsonb[], p_ended uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- Take results off a queue into job_results, all in this transaction: one row without a request that tells how many were taken,
-- and one for each request that ended. With p_wanted only the results of those requests are handed out, null are the others.
create function pgnexus.collect_results(p_queue text, p_limit int, p_notify boolean, p_wanted uuid[])
returns table (taken int, request_id uuid, result jsonb)
language plpgsql
set search_path = pg_catalog, pgnexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
declare
  v_messages pgmq.message_record[] := pgnexus.pop_results(p_queue, p_limit);
begin
  if v_messages is not null then
    return query select cardinality(v_messages), null::uuid, null::jsonb;
    return query select cardinality(v_messages), s.request_id, s.result
                 from pgnexus.store_messages(p_queue, v_messages, p_notify, p_wanted) s;
  end if;
end
$$;

create or replace function pgnexus.take_results(p_queue text, p_limit int, p_notify boolean default true)
returns table (taken int, request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  return query select c.taken, c.request_id, c.result from pgnexus.collect_results(p_queue, p_limit, p_notify, null) c;
end
$$;

-- pgmq plans each of its pops anew; the queue that nearly all results are on has a plan that is kept.
create function pgnexus.pop_results(p_queue text, p_limit int) returns pgmq.message_record[]
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_messages pgmq.message_record[];
begin
  if p_queue = 'ai_results' then
    with popped as (
      delete from pgmq.q_ai_results q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_results n where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record order by p.msg_id) into v_messages from popped p;
  else
    select array_agg(m order by m.msg_id) into v_messages from pgmq.pop(p_queue, p_limit) m;
  end if;
  return v_messages;
end
$$;

-- What is no result goes to the queue's archive with the reason, all others into job_results.
create or replace function pgnexus.store_messages(p_queue text, p_messages pgmq.message_record[], p_notify boolean, p_wanted uuid[] default null)
returns table (request_id uuid, result jsonb)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_results jsonb[];
  v_odd pgmq.message_record[];
begin
  select array_agg(m.message order by m.msg_id) filter (where is_result),
         array_agg(m) filter (where not is_result)
  into v_results, v_odd
  from unnest(p_messages) m
  cross join lateral (
    select pgnexus.try_uuid(m.message ->> 'request_id') is not null
           and coalesce(m.message ->> 'status', '') in ('success', 'failed', 'timeout', 'cancelled') as is_result offset 0) r;
  if v_odd is not null then
    perform nexus_api.archive_message(p_queue, m, 'no result: needs request_id (a UUID) and a status of success, failed, timeout or cancelled')
    from unnest(v_odd) m;
  end if;
  if v_results is not null then
    return query select e.request_id, e.result
                 from pgnexus.ended_by(v_results, pgnexus.end_requests(v_results, p_notify), p_wanted) e;
  end if;
end
$$;

-- The last resort against a message that no batch survives: the first one of the queue is tried alone, and goes to
-- the archive with the reason if it fails again. All in one transaction, so that no innocent one takes its place.
-- Returns nothing when it did not fail, or when there was none.
create or replace function pgnexus.reject_result(p_queue text) returns table (msg_id bigint, reason text)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- Cancel requests that have not ended; returns those that were cancelled by this.
create or replace function pgnexus.cancel(p_request_ids uuid[]) returns setof uuid
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- Requests that have ended need not wait for their time. One that send_due is sending at this moment is left to it,
-- for it locks in the other order; the nexus side answers such a request as cancelled or overdue.
create or replace function pgnexus.unschedule(p_request_ids uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus, pg_temp as $$
  delete from pgnexus.scheduled_requests s where s.request_id in (
    select d.request_id from pgnexus.scheduled_requests d where d.request_id = any (p_request_ids)
    for update skip locked)
$$;

create or replace function pgnexus.notify_done(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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
create or replace function pgnexus.send_due(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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
    perform pgnexus.send_requests(v_lane, v_messages);
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
create or replace function pgnexus.time_out_overdue(p_limit int, p_all boolean default false) returns int
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- Everything that time brings about on the caller's side; returns what was done and the seconds until the next
-- thing that is known to come, null if there is none.
create or replace function pgnexus.sweep(p_limit int, p_all boolean default false)
returns table (sent int, timed_out int, next_in double precision)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- The tasks that wait for these requests, in the order in which everybody locks them. The index over tokens is the only
-- one that fits the inner part, however few tasks waited when this was planned.
create or replace function pgnexus.waiting_steps(p_request_ids uuid[]) returns setof pgflow.step_tasks
language plpgsql stable
set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
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
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
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
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
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
language plpgsql immutable parallel safe set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  return coalesce(substring(p_text from '^\s*```(?:json|JSON)?\s*\n(.*)\n\s*```\s*$'), p_text)::jsonb;
exception when data_exception or program_limit_exceeded then
  return null;
end
$$;

-- A stored result in the form of the wire.
create or replace function pgnexus.result_of(p_request pgnexus.job_results) returns jsonb
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
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
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- Cancel requests that no step waits for any more; returns how many were looked at. It waits for no row: what somebody is
-- ending at this moment is left to the next sweep.
create or replace function pgnexus.cancel_abandoned(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
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

-- Keeping job_results small: results that are old enough go, whole months where that is possible. What has not ended
-- stays, however old it is, and so does what a living idempotency key names.
create index idempotency_keys_by_request on pgnexus.idempotency_keys (request_id);

-- What was written into a month since it was first looked whether it may go: its number tells whether more was.
create table pgnexus.month_writes (
  month      text not null,
  request_id uuid not null
);

create function pgnexus.note_month_write() returns trigger
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  insert into pgnexus.month_writes (month, request_id) values (tg_table_name, new.request_id);
  return null;
end
$$;

-- Results that ended before then, in the order of their ids. Of those minted since (UUIDv7) none can have, so they are
-- passed over; ids of other versions lie before and behind. In p_skip the names of months that are told of elsewhere.
-- Unless p_exact, those of the month in which then lies are left until all of that month may go: a row that is deleted, and
-- vacuumed away, costs 4 kB of WAL, a month that is dropped next to nothing.
create function pgnexus.prune_results(
  p_keep interval, p_after text, p_limit int, p_dry boolean, p_skip text[] default '{}', p_exact boolean default true)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_young uuid := pgnexus.uuid_floor(case when p_exact then v_before else date_trunc('month', v_before, 'UTC') end);
  v_after uuid := coalesce(nullif(p_after, ''), '00000000-0000-0000-0000-000000000000')::uuid;
  v_to uuid := case when v_after < v_young then v_young else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;
  v_slice uuid[];
begin
  v_slice := array(
    select j.request_id from pgnexus.job_results j
    where j.request_id > v_after and j.request_id < v_to order by j.request_id limit p_limit);
  if cardinality(v_slice) = p_limit then
    v_to := v_slice[p_limit];
    resume := v_to;
  elsif v_to = v_young then
    resume := pgnexus.uuid_floor(clock_timestamp() + interval '1 day');
  end if;
  select count(*), coalesce(sum(300 + coalesce(pg_column_size(j.input), 0) + coalesce(pg_column_size(j.output), 0)
                                + coalesce(pg_column_size(j.error), 0)), 0),
         array_agg(j.request_id)
  into removed, bytes, v_slice
  from (
    select j.request_id, j.input, j.output, j.error from pgnexus.job_results j
    where j.request_id > v_after and j.request_id <= v_to and j.tableoid::regclass::text <> all (p_skip)
      and j.finished_at < v_before and not exists (
        select from pgnexus.idempotency_keys k where k.request_id = j.request_id and k.expires_at > clock_timestamp())
    for update of j skip locked) j;
  if not p_dry and removed > 0 then
    delete from pgnexus.job_results j
    where j.request_id > v_after and j.request_id <= v_to and j.request_id = any (v_slice);
  end if;
  return next;
end
$$;

-- The oldest month behind p_after that ended before then; null when there is none.
create function pgnexus.month_before(p_before timestamptz, p_after text) returns text
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select min(c.relname collate "C") from pg_inherits i join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'pgnexus.job_results'::regclass and c.relname ~ '^job_results_\d{4}_\d{2}$'
    and c.relname collate "C" > p_after
    and (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') at time zone 'UTC' <= p_before
$$;

-- Whether a living idempotency key names a request of this month.
create function pgnexus.month_has_keys(p_month text) returns boolean
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select exists (
    select from pgnexus.idempotency_keys k
    where k.request_id >= pgnexus.uuid_floor(m.start at time zone 'UTC')
      and k.request_id < pgnexus.uuid_floor((m.start + interval '1 month') at time zone 'UTC') and k.expires_at > clock_timestamp())
  from (select to_date(right(p_month, 7), 'YYYY_MM')::timestamp as start) m
$$;

-- Have it noted what is written into a month from now on; waits a moment for who writes into it, and no longer.
create function pgnexus.watch_month(p_month text) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  if not exists (select from pg_trigger t where t.tgrelid = to_regclass('pgnexus.' || p_month) and t.tgname = 'note_write') then
    execute format('create trigger note_write after insert or update on pgnexus.%I for each row
                    execute function pgnexus.note_month_write()', p_month);
  end if;
end
$$;

-- Whole months, in four steps: have it noted what is written into a month; look through its rows, 16 MB at a time, for one
-- that may not go; lock job_results for the moment it takes to drop the month; do so if nothing was written since the first
-- step. Busy: somebody else is at it, or the lock was not to be had within lock_timeout; the same again, later. What is a
-- month that went. The cursor is MONTH:BLOCK:ROWS:WRITES, or MONTH when it is done with.
create function pgnexus.prune_months(p_keep interval, p_after text, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text, busy boolean, what text)
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp set lock_timeout = '100ms' set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_month text := split_part(p_after, ':', 1);
  v_block bigint := nullif(split_part(p_after, ':', 2), '');
  v_rows bigint := nullif(split_part(p_after, ':', 3), '');
  v_writes bigint := nullif(split_part(p_after, ':', 4), '');
  v_found bigint;
  v_kept bigint;
  v_size bigint;
begin
  removed := 0;
  bytes := 0;
  busy := false;
  if p_keep < interval '0' then
    raise exception using errcode = 'PN002', message = 'what is to come cannot be pruned';
  elsif not pg_try_advisory_xact_lock(hashtext('pgnexus.partitions')) then
    busy := true;
    resume := p_after;
  elsif v_block is null then
    v_month := pgnexus.month_before(v_before, v_month);
    resume := v_month;
    if v_month is not null and not pgnexus.month_has_keys(v_month) then
      if not p_dry then
        perform pgnexus.watch_month(v_month);
      end if;
      resume := v_month || format(':0:0:%s', (select count(*) from pgnexus.month_writes w where w.month = v_month));
    end if;
  elsif v_block < pg_relation_size(format('pgnexus.%I', v_month)::regclass) / 8192 then
    execute format(
      'select count(*), count(*) filter (where (j.finished_at < $1) is not true)
       from pgnexus.%I j where j.ctid >= $2 and j.ctid < $3', v_month)
    into v_found, v_kept using v_before, format('(%s,0)', v_block)::tid, format('(%s,0)', v_block + 2048)::tid;
    resume := case when v_kept > 0 then v_month else format('%s:%s:%s:%s', v_month, v_block + 2048, v_rows + v_found, v_writes) end;
  else
    resume := v_month;
    v_size := pg_total_relation_size(format('pgnexus.%I', v_month)::regclass);
    if p_dry or pgnexus.drop_month(v_month, v_writes) then
      removed := v_rows;
      bytes := v_size;
      what := v_month;
    end if;
  end if;
  return next;
exception
  when undefined_table then  -- somebody else dropped it
    resume := v_month;
    return next;
  when lock_not_available or deadlock_detected then
    busy := true;
    resume := p_after;
    return next;
end
$$;

-- Drop a month, if so many writes into it and no more have been noted; whether it went.
create function pgnexus.drop_month(p_month text, p_writes bigint) returns boolean
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  lock table only pgnexus.job_results in access exclusive mode;
  if (select count(*) from pgnexus.month_writes w where w.month = p_month) <> p_writes then
    return false;
  end if;
  execute format('drop table pgnexus.%I', p_month);
  delete from pgnexus.month_writes w where w.month = p_month;
  return true;
end
$$;

-- Where a result goes that is wanted on a queue. One that does not exist (any more), that this side may not write to, a
-- request lane or a flow's own cannot take it: it goes to ai_results then, where it is stored all the same. What counts is
-- the role at work, also where a trigger publishes with its owner's rights.
create function nexus.result_queue(p_queue text) returns text
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp as $$
begin
  if p_queue <> 'ai_results' and nexus_api.takes_results(p_queue)
    and has_table_privilege(pgflow.caller(), to_regclass(format('pgmq.%I', 'q_' || p_queue)), 'insert')
  then
    return p_queue;
  end if;
  return 'ai_results';
end
$$;

-- Send results to the queues they are wanted on.
create or replace function nexus.publish(p_queues text[], p_results jsonb[], p_notify boolean) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_queue text;
  v_results jsonb[];
begin
  for v_queue, v_results in
    select i.queue, array_agg(i.result) from unnest(p_queues, p_results) as i (queue, result) group by 1
  loop
    if v_queue <> 'ai_results' then
      v_queue := nexus.result_queue(v_queue);
    end if;
    if v_queue = 'ai_results' then  -- pgmq's own function plans its statements anew each time, three deep
      insert into pgmq.q_ai_results (vt, message) select clock_timestamp(), r from unnest(v_results) r;
    else
      perform pgmq.send_batch(v_queue, v_results);
    end if;
  end loop;
  if p_notify then
    perform pg_notify('pgnexus_results', '');
  end if;
end
$$;

-- Every failed run of LLMRequestWorkflow publishes its failure here, whatever failed it: the workflow, the last
-- lost worker, a cancel, an operator. What the workflow told of it is in its failed task.
create or replace function nexus.publish_failed_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus, pg_temp as $$
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

-- The same. What is written the usual way, and is no date that a month may lack, is read without a look at what it raises.
create function nexus.read_time(p_text text) returns timestamptz
language sql stable as $$
  select case when p_text ~ '^[12]\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]0\d:[0-5]\d)$'
              then p_text::timestamptz else nexus.try_timestamptz(p_text) end
$$;

-- Take up to p_limit messages off one lane. (pgmq plans each of its pops anew.)
create function nexus.pop_lane(p_lane text, p_limit int) returns pgmq.message_record[]
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_messages pgmq.message_record[];
begin
  if p_lane = 'ai_requests_interactive' then
    with popped as (
      delete from pgmq.q_ai_requests_interactive q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_requests_interactive n
        where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record) into v_messages from popped p;
  elsif p_lane = 'ai_requests' then
    with popped as (
      delete from pgmq.q_ai_requests q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_requests n
        where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record) into v_messages from popped p;
  elsif p_lane = 'ai_requests_batch' then
    with popped as (
      delete from pgmq.q_ai_requests_batch q where q.ctid = any (array(
        select n.ctid from pgmq.q_ai_requests_batch n
        where n.vt <= clock_timestamp() order by n.msg_id limit p_limit for update skip locked))
      returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
    )
    select array_agg(row(p.*)::pgmq.message_record) into v_messages from popped p;
  end if;
  return v_messages;
end
$$;

-- Take up to p_limit messages off one lane, and start them.
create or replace function nexus.take_lane(p_lane text, p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_popped pgmq.message_record[] := nexus.pop_lane(p_lane, p_limit);
  v_started int;
begin
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
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
#variable_conflict use_column
declare
  v_ids uuid[];
  v_inputs jsonb[];
  v_sent timestamptz[];
  v_deadlines timestamptz[];
  v_ended uuid[];
  v_started uuid[];
  v_step text;
begin
  select array_agg(f.id), array_agg(f.message), array_agg(f.enqueued_at), array_agg(nexus.read_time(f.message ->> 'deadline'))
  into v_ids, v_inputs, v_sent, v_deadlines
  from (
    select distinct on (u.id) u.id, m.message, m.enqueued_at
    from unnest(p_messages) m
    cross join lateral (select nexus.try_uuid(m.message ->> 'request_id') as id offset 0) u
    order by u.id, m.msg_id
  ) f where f.id is not null;
  if cardinality(v_ids) is distinct from cardinality(p_messages) then
    perform nexus_api.archive_message(p_lane, m, 'no request: needs request_id, a UUID')
    from unnest(p_messages) m where nexus.try_uuid(m.message ->> 'request_id') is null;
  end if;
  if v_ids is null then
    return;
  end if;
  v_ended := nexus.end_at_once(v_ids, v_inputs, v_deadlines);
  if v_ended is not null then
    select array_agg(a.id), array_agg(a.input), array_agg(a.sent), array_agg(a.deadline)
    into v_ids, v_inputs, v_sent, v_deadlines
    from unnest(v_ids, v_inputs, v_sent, v_deadlines) as a (id, input, sent, deadline) where a.id <> all (v_ended);
  end if;
  select array_agg(s.run_id), min(s.step_slug) into v_started, v_step
  from pgflow.start_claimed('llm_request_workflow', p_worker_id, v_ids, v_inputs) s;
  if cardinality(v_started) < cardinality(v_ids) then
    return query
      select i.id, v_step, 1, i.input, extract(epoch from i.deadline - clock_timestamp())::double precision,
             extract(epoch from clock_timestamp() - i.sent)::double precision
      from unnest(v_started) as s (id) join unnest(v_ids, v_inputs, v_sent, v_deadlines) as i (id, input, sent, deadline) on i.id = s.id;
  elsif v_started is not null then
    return query
      select i.id, v_step, 1, i.input, extract(epoch from i.deadline - clock_timestamp())::double precision,
             extract(epoch from clock_timestamp() - i.sent)::double precision
      from unnest(v_ids, v_inputs, v_sent, v_deadlines) as i (id, input, sent, deadline);
  end if;
  if coalesce(cardinality(v_started), 0) < cardinality(p_messages) then
    perform nexus.refuse_reused(p_messages);
  end if;
end
$$;

-- A message whose id has a run already is dropped: it was delivered twice. But whose result is wanted at ai_results, while the
-- run's goes elsewhere, is another request under the same name, and its stored row would wait for ever.
create function nexus.refuse_reused(p_messages pgmq.message_record[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform nexus.publish(
    array_agg('ai_results'::text),
    array_agg(nexus.failure(m.message, 'failed', 'invalid_request', 'its request_id was used before, with another reply_to')), true)
  from unnest(p_messages) m join pgflow.runs r on r.run_id = nexus.try_uuid(m.message ->> 'request_id')
  where coalesce(r.input ->> 'reply_to', 'ai_results') <> coalesce(m.message ->> 'reply_to', 'ai_results')
    and nexus.result_queue(r.input ->> 'reply_to') <> 'ai_results' and nexus.result_queue(m.message ->> 'reply_to') = 'ai_results'
  having count(*) > 0;
end
$$;

-- Answer the requests that were cancelled or whose deadline passed before anyone took them up; returns them, null if there are none. Each
-- gets a run that has failed already, so that its message, delivered twice, is answered once.
create function nexus.end_at_once(p_ids uuid[], p_inputs jsonb[], p_deadlines timestamptz[]) returns uuid[]
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_now timestamptz := clock_timestamp();
  v_ended uuid[];
  v_queues text[];
  v_results jsonb[];
begin
  if not exists (select from nexus.cancellations c where c.request_id = any (p_ids))
    and not exists (select from unnest(p_deadlines) as d (deadline) where d.deadline <= v_now)
  then
    return null;
  end if;
  with ended as (
    insert into pgflow.runs (run_id, flow_slug, status, input, failed_at, cancelled_at)
    select i.id, 'llm_request_workflow', 'failed', i.input, now(), case when c.request_id is not null then now() end
    from unnest(p_ids, p_inputs, p_deadlines) as i (id, input, deadline)
    left join nexus.cancellations c on c.request_id = i.id
    where c.request_id is not null or i.deadline <= v_now
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
  return v_ended;
end
$$;

-- Whether a queue that requests come from has one to take. pgmq plans each pop anew; asking first, with a plan that is
-- kept, halves what a look at mostly empty queues costs.
create or replace function nexus.has_requests(p_queue text) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
-- to end the task with; seconds_left is null without a deadline, waited (on its lane) for those that come back.
create or replace function nexus.take_requests(p_worker_id uuid, p_limit int, p_others int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, waited double precision)
language plpgsql
set search_path = pg_catalog, nexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
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

-- The last resort against a message that no batch survives: the first one of the lane is tried alone, and goes to
-- the archive with the reason if it fails again. All in one transaction, so that no innocent one takes its place.
-- Returns null when it did not fail, or when there was none.
create or replace function nexus.reject_request(p_lane text, p_worker_id uuid) returns table (msg_id bigint, reason text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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

-- Put claimed tasks back until their turn comes. An attempt that called a provider counts, for the books name the calls
-- by it; any other does not. Returns those that were parked; the others had been taken from this worker.
create or replace function nexus.park(
  p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_scopes text[], p_priorities text[], p_agents text[],
  p_deadlines text[], p_counts boolean[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
    select i.* from unnest(p_runs, p_steps, p_attempts, p_counts) as i (run_id, step_slug, attempt, counts)
    cross join lateral (
      select from pgflow.runs r where r.run_id = i.run_id and r.status = 'started' limit 1
    ) as live
    order by i.run_id
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
create or replace function nexus.still_flies(p_scope text) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform from nexus.flights f where f.key = decode(substr(p_scope, 8), 'hex') for key share skip locked;
  return found;
end
$$;

-- The next p_limit of a scope's lane: agents take turns, beginning after p_after, each with its oldest.
create or replace function nexus.next_parked(p_scope text, p_lane smallint, p_after text, p_limit int) returns uuid[]
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.claim_parked(p_worker_id uuid, p_runs uuid[], out runs uuid[], out agents text[])
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.take_parked(
  p_worker_id uuid, p_scope text, p_limit int, p_others int default null, p_after text default ''
) returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off set enable_bitmapscan = off as $$
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
create or replace function nexus.take_overdue(p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  return query select d.* from nexus.claim_parked(p_worker_id, array(
    select p.run_id from nexus.parked p where p.deadline <= v_now order by p.deadline limit p_limit)) c
  cross join lateral nexus.describe_claims(c.runs, c.agents) d;
end
$$;

create or replace function nexus.describe_claims(p_runs uuid[], p_agents text[])
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select r.run_id, t.step_slug, t.attempts_count, r.input,
         extract(epoch from nexus.try_timestamptz(r.input ->> 'deadline') - clock_timestamp())::double precision, i.agent
  from unnest(p_runs, p_agents) with ordinality as i (run_id, agent, n)
  join pgflow.runs r on r.run_id = i.run_id
  join pgflow.step_tasks t on t.run_id = i.run_id and t.status = 'started'
  order by i.n
$$;

-- The scopes in which requests are parked, beginning after p_after, but no flights: their ends send them on.
create or replace function nexus.parked_scopes(p_after text, p_limit int) returns setof text
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off set enable_bitmapscan = off as $$
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
create or replace function nexus.unpark_runs(p_runs uuid[]) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.unpark(p_scope text) returns int
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.unpark_runs(array(select p.run_id from nexus.parked p where p.scope = p_scope))
$$;

-- Those that have waited for a flight longer than p_age: whoever should have ended it may have died.
create or replace function nexus.unpark_stranded(p_age interval, p_limit int) returns int
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.unpark_runs(array(
    select p.run_id from nexus.parked p
    where p.scope >= 'flight:' and p.scope < 'flight;' and p.parked_at < now() - p_age
    order by p.parked_at limit p_limit))
$$;

-- Who sent the messages of the lanes after those given (null: after all but the last p_limit), with their numbers;
-- at most p_limit messages and a megabyte a lane. last is the last one of the lane, seen how many there were.
create or replace function nexus.look_ahead(p_after jsonb, p_limit int)
returns table (lane text, last bigint, seen bigint, agent_id text, msg_ids bigint[])
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.divert(p_worker_id uuid, p_lane text, p_msg_ids bigint[]) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.sharers(p_limit int) returns table (lane smallint, agent_id text)
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off set enable_bitmapscan = off as $$
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
language plpgsql set search_path = pg_catalog, nexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
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
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_done uuid[];
  v_again uuid[];
begin
  if p_outcome = 'success' then
    v_done := array(select pgflow.complete_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array_fill(null::jsonb, array[cardinality(p_runs)])));  -- the result tells it all
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
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.renumbered(p_worker_id uuid, p_items jsonb[]) returns jsonb[]
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.sum_of_calls(
  p_request_id uuid, out calls int, out prompt_tokens bigint, out completion_tokens bigint, out cached_tokens bigint,
  out cache_write_tokens bigint, out reasoning_tokens bigint, out cost numeric, out estimated boolean)
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select count(*), coalesce(sum(a.prompt_tokens), 0), coalesce(sum(a.completion_tokens), 0),
         coalesce(sum(a.cached_tokens), 0), coalesce(sum(a.cache_write_tokens), 0), coalesce(sum(a.reasoning_tokens), 0),
         case when not coalesce(bool_or(a.cost is null and a.prompt_tokens + a.completion_tokens > 0), false) then sum(a.cost) end,
         coalesce(bool_or(a.estimated), false)
  from nexus.attempts a where a.request_id = p_request_id
$$;

-- Of these items, the requests that have more calls in the books than the item tells of: they were taken up before.
create or replace function nexus.called_before(p_items jsonb[]) returns uuid[]
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select array_agg(i.run_id)
  from (select (i.item ->> 'run_id')::uuid as run_id, jsonb_array_length(i.item -> 'calls') as calls
        from unnest(p_items) as i (item)) i
  where (select count(*) from nexus.attempts a where a.request_id = i.run_id) > i.calls
$$;

-- A result with the calls of all the times its request was taken up, where there are more than it tells of.
create or replace function nexus.count_calls(p_message jsonb, p_run_id uuid) returns jsonb
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select case when s.calls <= coalesce((p_message ->> 'attempts')::int, 0) and p_message ? 'usage' then p_message
              when s.calls = 0 then p_message
              else p_message - '{cost,estimated}'::text[] || jsonb_strip_nulls(jsonb_build_object(
                'attempts', s.calls,
                -- an answer that another request got is free, whatever was asked in vain before it
                'cost', coalesce(s.cost::text, case when s.prompt_tokens + s.completion_tokens = 0 then p_message ->> 'cost' end),
                'estimated', case when s.estimated then true end,
                'usage', jsonb_build_object(
                  'prompt_tokens', s.prompt_tokens, 'completion_tokens', s.completion_tokens,
                  'total_tokens', s.prompt_tokens + s.completion_tokens, 'cached_tokens', s.cached_tokens,
                  'cache_write_tokens', s.cache_write_tokens, 'reasoning_tokens', s.reasoning_tokens))) end
  from nexus.sum_of_calls(p_run_id) s
$$;

-- Calls of items that could not be settled are in the books all the same: whoever ended their requests did not know them.
create or replace function nexus.note_late(p_items jsonb[], p_settled uuid[]) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  insert into nexus.late_calls (request_id)
  select (i.item ->> 'run_id')::uuid from unnest(p_items) as i (item)
  where (i.item ->> 'run_id')::uuid <> all (p_settled) and jsonb_array_length(i.item -> 'calls') > 0
$$;

-- Give the stored results of requests that have ended the sum of all their calls, where calls came late; a request that
-- has not ended will be told with them when it does. What somebody else holds is left for the next time, so that this waits
-- for nobody; what never arrives where results are stored is let go after a day. Returns how many were looked at.
create or replace function nexus.amend_results(p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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

-- Note calls in flight as one row, drop rows whose calls are in the books, and bury those whose requests others have been
-- given. Said twice, it is done once. Nobody waits for the disk: what a crash of the server loses the worker still knows.
create or replace function nexus.reserve(p_instance uuid, p_number bigint, p_calls json, p_done bigint[], p_lost bigint[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
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
create or replace function nexus.gone_instances(p_all boolean) returns setof uuid
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.book_unknown(p_instance uuid, p_numbers bigint[], out calls int, out charges jsonb[])
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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

create or replace function nexus.lock_burial(p_instance uuid, p_wait boolean) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.begin_burial(p_wait boolean) returns jsonb[]
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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

create or replace function nexus.end_burial(p_gone jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.bury() returns table (instance_id uuid, calls int)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_gone jsonb[] := nexus.begin_burial(false);
begin
  perform nexus.end_burial(v_gone);
  return query select (g.item ->> 'instance_id')::uuid, (g.item ->> 'calls')::int from unnest(v_gone) as g (item);
end
$$;

-- The flight that a request leads, if any, is over: those who follow may be taken up.
create or replace function nexus.end_flight(p_request_id uuid) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.look_up(p_request_id uuid, p_key bytea, p_kept boolean, p_flight boolean)
returns table (how text, answer jsonb)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_how    text;
  v_answer jsonb;
  v_leader uuid;
begin
  how := 'none';
  for v_look in 1 .. 2 loop
    select case when r.started_at < a.made_at then 'shared' else 'cached' end, a.answer into v_how, v_answer
    from nexus.answers a join pgflow.runs r on r.run_id = p_request_id
    where a.key = p_key and (p_kept and a.keep_until > clock_timestamp() or r.started_at < a.made_at);
    if found then
      how := v_how;
      answer := v_answer;
      if p_flight then
        perform nexus.end_flight(p_request_id);
      end if;
      exit;
    end if;
    exit when how = 'lead' or not p_flight;
    -- locked: whatever ends it meanwhile ends its flight after this; a worker that was taken for dead leads nobody
    perform from pgflow.runs r where r.run_id = p_request_id and r.status = 'started' for share;
    exit when not found;
    insert into nexus.flights as f (key, request_id) values (p_key, p_request_id)
    on conflict (key) do update  -- also to read it, whoever wrote it and when
    set request_id = case when exists (select from pgflow.runs r where r.run_id = f.request_id and r.status = 'started')
                          then f.request_id else excluded.request_id end
    returning f.request_id into v_leader;
    how := case when v_leader = p_request_id then 'lead' else 'follow' end;
    exit when how = 'follow';
  end loop;  -- who leads looks again: the answer may have come, and its flight gone, between the two looks
  return next;
end
$$;

-- In T3, for items with a `saving` {key, ttl, answer}: keep the answer, for ttl seconds or for those who follow only, and end the flight.
-- Without an answer (the leader failed) the first of the followers to be taken up leads on.
create or replace function nexus.save_answers(p_items jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.call_followers(p_keys bytea[]) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.unpark(nexus.flight_scope(k.key)) from unnest(p_keys) as k (key)
$$;

-- A leader whose run ends in any other way than by T3 (cancelled, its last worker lost) hands over.
create or replace function nexus.hand_over() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform nexus.end_flight(new.run_id);
  return null;
end
$$;

-- Take away answers that nobody will be given any more, and flights whose leader is gone; returns how many answers.
create or replace function nexus.prune_answers(p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
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

-- The instances that count: others have no calls under way.
create or replace function nexus.live_instances() returns setof uuid
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select w.worker_id from pgflow.workers w
  where w.queue_name = 'llm_request_workflow' and w.stopped_at is null
    and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, interval '1 minute')
$$;

-- Give back and take, for one instance and any number of scopes. Each of p_wants is
--   {scope, kind, family, amount, give, period, since, lost, idle, need, waiting, want}: the amount of the settings; what is
--   given back of the row that began at since; the serial of an earlier lease of which no answer came; what it has left in no call;
--   what its first call lacks; what all its calls lack; the same and what it would have ahead.
-- One row for each, by its number; none at all for an instance that counts for dead.
create or replace function nexus.lease(p_instance uuid, p_serial bigint, p_wants jsonb)
returns table (n bigint, granted numeric, cap numeric, next_in double precision, period date, since timestamptz,
               ends_in double precision, spent numeric, most numeric, rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.ahead(p_want jsonb, p_rest numeric, p_live int) returns numeric
language sql immutable set search_path = pg_catalog, nexus, pg_temp as $$
  select case when p_rest <= 0 or (p_want ->> 'want')::numeric = 0 then 0
              else least(greatest((p_want ->> 'want')::numeric - (p_want ->> 'waiting')::numeric, p_rest / (16 * p_live)),
                         p_rest / (2 * p_live)) end
$$;

-- A token bucket: it holds a tenth of the minute's amount, one at least, and fills all the time. A call that needs more
-- tokens than there are passes as soon as there are any: the rest is owed, so that no flood of small calls keeps it out.
create or replace function nexus.lease_rate(
  p_want jsonb, p_live int, out granted numeric, out next_in double precision, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.period_of(p_kind text, p_now timestamptz) returns date
language sql stable set search_path = pg_catalog, nexus, pg_temp as $$
  select case when p_kind like '%\_per\_day' then (p_now at time zone 'UTC')::date
              when p_kind like '%\_per\_month' then date_trunc('month', p_now at time zone 'UTC')::date
              else '-infinity'::date end
$$;

-- Give back what is no longer wanted. When no answer came to an earlier lease (lost), what it granted is undone if it was
-- done, else what it gave back is given back now; both leave its serial, so that this may be said twice.
create or replace function nexus.give_back(p_want jsonb, p_instance uuid, p_serial bigint) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  update nexus.holdings h
  set leased = greatest(h.leased - case when h.serial = (p_want ->> 'lost')::bigint then h.granted
                                        else (p_want ->> 'give')::numeric end, 0),
      granted = 0, serial = coalesce((p_want ->> 'lost')::bigint, p_serial)
  where h.scope = p_want ->> 'scope' and h.kind = p_want ->> 'kind' and h.instance_id = p_instance
    and h.period = coalesce((p_want ->> 'period')::date, nexus.period_of(p_want ->> 'kind', clock_timestamp()))
    and ((p_want ->> 'since') is null or h.since = (p_want ->> 'since')::timestamptz)
$$;

-- One instance's share of calls at once, or of a budget. The caller has the lock of the scope and kind.
create or replace function nexus.lease_share(
  p_want jsonb, p_instance uuid, p_serial bigint, p_live uuid[],
  out granted numeric, out cap numeric, out next_in double precision, out period date, out since timestamptz,
  out ends_in double precision, out spent numeric, out most numeric, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.share_slots(
  p_want jsonb, p_instance uuid, p_live uuid[], p_waiting_since timestamptz,
  out granted numeric, out cap numeric, out next_in double precision, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.share_budget(
  p_want jsonb, p_instance uuid, p_period date, p_live int,
  out granted numeric, out next_in double precision, out spent numeric, out most numeric, out rest numeric)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.lock_past() returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select pg_advisory_xact_lock(hashtextextended('nexus.charged', 0))
$$;

-- Pay for calls, in the transaction that books them. Each of p_charges is {scope, kind, period, reserved, actual}; what was
-- set aside counts where nobody knows what a call took.
create or replace function nexus.charge(p_instance uuid, p_charges jsonb[]) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.release_holdings(p_instance uuid) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.prune_limits() returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  delete from nexus.charged c where c.period < clock_timestamp() - interval '100 days';
  delete from nexus.holdings h
  where h.told_at < clock_timestamp() - interval '1 hour'
    and (h.leased = 0 or (isfinite(h.period) and h.period < clock_timestamp() - interval '100 days'))
    and not exists (select from nexus.charged c
                    where c.scope = h.scope and c.kind = h.kind and c.period = h.period and c.instance_id = h.instance_id);
  delete from nexus.buckets b where b.refilled_at < clock_timestamp() - interval '1 day'  -- a new one is full, too
$$;

-- Tell what the settings of this instance say: {scope, kind, amount} each.
create or replace function nexus.configure_limits(p_instance uuid, p_limits jsonb) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  insert into nexus.configured_limits (instance_id, scope, kind, amount)
  select p_instance, l.scope, l.kind, l.amount
  from jsonb_to_recordset(p_limits) as l (scope text, kind text, amount numeric)
  on conflict on constraint configured_limits_pkey do update set amount = excluded.amount
$$;

-- Leave a model alone for p_seconds: after failures doubled each time it comes to nothing, 300 at most; after a vendor's own
-- Retry-After just as long as it said, and that begins the count anew. What nobody has asked for in a day is forgotten.
create or replace function nexus.open_breaker(p_provider text, p_model text, p_reason text, p_seconds double precision) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.probe_breaker(p_instance uuid, p_provider text, p_model text, p_seconds double precision) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.leave_probe(p_instance uuid, p_provider text, p_model text) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  update nexus.breakers b set probe_until = null, probe_by = null
  where b.provider = p_provider and b.model = p_model and b.probe_by = p_instance
$$;

create or replace function nexus.close_breaker(p_provider text, p_model text) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  delete from nexus.breakers b where b.provider = p_provider and b.model = p_model;
  if found then
    perform pg_notify('pgnexus_breakers', '');
  end if;
end
$$;

-- Store one flush of each of many streams, and tell their readers. p_numbers are null for the first flush of a claim,
-- which is numbered here, and begins with discard when another claim had written before. Said again after a commit
-- cut off half-way it stores nothing twice. Returns each claim's next number; those that are missing are refused.
-- Only the first flush of a claim is waited for until it is on disk. What a crash takes away of the later ones is in the
-- stored answer all the same; but were all of a claim's chunks lost, the next one would begin with their numbers again,
-- and a reader that comes back after one of them would take it for what he knows.
create or replace function nexus.store_chunks(
  p_request_ids uuid[], p_claims uuid[], p_attempts int[], p_numbers int[], p_discards boolean[], p_texts text[],
  p_reasonings text[], p_tool_calls jsonb[]
) returns table (claim uuid, next int)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_held uuid[];
begin
  if array_position(p_numbers, null) is null then
    perform set_config('synchronous_commit', 'off', true);
  end if;
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
create or replace function nexus.begin_streams(
  p_request_ids uuid[], p_claims uuid[], p_attempts int[], p_numbers int[], p_held uuid[]
) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.place_chunk(p_request_id uuid, p_number int, p_discard boolean, out number int, out discard boolean)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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

create or replace function nexus.notify_chunks(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
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
create or replace function nexus.prune_chunks(p_ttl interval, p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
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

-- Runs of requests that ended before then. Their outcome is stored by both sides; what goes with a run is its trace in the
-- engine, and the memory that this request was taken up before.
create function nexus.prune_runs(p_keep interval, p_after text, p_limit int, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_young uuid := pgflow.uuid_floor(v_before);
  v_after uuid := coalesce(nullif(p_after, ''), '00000000-0000-0000-0000-000000000000')::uuid;
  v_to uuid := case when v_after < v_young then v_young else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;
  v_slice uuid[];
  v_old uuid[];
begin
  v_slice := array(
    select r.run_id from pgflow.runs r where r.run_id > v_after and r.run_id < v_to order by r.run_id limit p_limit);
  if cardinality(v_slice) = p_limit then
    resume := v_slice[p_limit];
  elsif v_to = v_young then
    resume := pgflow.uuid_floor(clock_timestamp() + interval '1 day');
  end if;
  v_old := array(
    select r.run_id from pgflow.runs r
    where r.run_id = any (v_slice) and r.flow_slug = 'llm_request_workflow' and r.status <> 'started'
      and coalesce(r.completed_at, r.failed_at) < v_before
    for update skip locked);
  select d.removed, d.bytes into removed, bytes from pgflow.delete_runs(v_old, p_dry) d;
  return next;
end
$$;

-- Calls in the books that began before then. Those of this month stay in any case, for what is left of budgets is told from
-- them, and so do those of requests under way, whose results will tell their sum.
create function nexus.prune_attempts(p_keep interval, p_after text, p_limit int, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_before timestamptz := least(clock_timestamp() - p_keep, date_trunc('month', clock_timestamp(), 'UTC'));
  v_young uuid := pgflow.uuid_floor(v_before);
  v_after uuid := coalesce(nullif(p_after, ''), '00000000-0000-0000-0000-000000000000')::uuid;
  v_to uuid := case when v_after < v_young then v_young else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;
  v_slice uuid[];
  v_old tid[];
begin
  v_slice := array(
    select a.request_id from nexus.attempts a
    where a.request_id > v_after and a.request_id < v_to order by a.request_id limit p_limit);
  if cardinality(v_slice) = p_limit then
    v_to := v_slice[p_limit];
    resume := v_to;
  elsif v_to = v_young then
    resume := pgflow.uuid_floor(clock_timestamp() + interval '1 day');
  end if;
  v_old := array(
    select a.ctid from nexus.attempts a
    where a.request_id > v_after and a.request_id <= v_to and a.started_at < v_before
      and not exists (select from pgflow.runs r where r.run_id = a.request_id and r.status = 'started')
    for update skip locked);
  removed := cardinality(v_old);
  bytes := coalesce((select sum(pg_column_size(a.*)) from nexus.attempts a where a.ctid = any (v_old)), 0);
  if not p_dry and removed > 0 then
    delete from nexus.attempts a where a.ctid = any (v_old);
  end if;
  return next;
end
$$;

-- Create a queue for results and let both sides use it.
create or replace function nexus_api.create_queue(queue_name text) returns void
language plpgsql security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
begin
  if queue_name is null or queue_name !~ '^[a-z0-9_]{1,47}$' then
    raise exception using errcode = 'PN002',
      message = format('queue name "%s": use 1 to 47 of a-z, 0-9 and _', left(queue_name, 100));
  end if;
  perform pgflow.create_queue(queue_name);
end
$$;

-- Whether results may be wanted on a queue of this name: not on a request lane, nor on a flow's own queue.
create or replace function nexus_api.takes_results(queue_name text) returns boolean
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select queue_name not like 'ai\_requests%'
     and not exists (select from pgflow.flows f
                     where coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) = takes_results.queue_name)
     and exists (select from pgmq.meta m where m.queue_name = takes_results.queue_name)
$$;

-- Put a message that was taken off a queue into that queue's archive, with the reason in its headers. With the rights of
-- whoever took it: an archive is evidence.
create or replace function nexus_api.archive_message(p_queue text, p_message pgmq.message_record, p_reason text) returns void
language plpgsql set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.cancel(p_request_ids uuid[]) returns void
language plpgsql security definer set search_path = pg_catalog, nexus_api, pg_temp set enable_seqscan = off set jit = off as $$
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
create or replace function nexus_api.live_instances(p_lease interval) returns int
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select count(*)::int from pgflow.workers w
  where w.queue_name = 'llm_request_workflow' and w.stopped_at is null
    and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, p_lease)
$$;

-- The models that live instances know, and whether any of them can use it now.
create or replace function nexus_api.available_models(p_lease interval)
returns table (provider text, model text, usable boolean, reason text)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select m.provider, m.model, bool_or(m.usable), case when not bool_or(m.usable) then min(m.reason) end
  from nexus.models m join pgflow.workers w on w.worker_id = m.instance_id
  where w.stopped_at is null and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, p_lease)
  group by m.provider, m.model
  order by 3 desc, 1, 2
$$;

-- Depth of every queue of ours, age of its oldest message in seconds, and how many of them may be read now: by the clock, and
-- not by the start of this transaction, which may be older than what it sees.
create or replace function nexus_api.queue_metrics()
returns table (queue text, depth bigint, ready bigint, oldest_seconds int, archived bigint)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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

-- What the nexus side is doing: requests in flight and put back, and of the provider calls that ended in the last
-- p_window: how many a second, how many failed (and how often which provider failed how), and their latency. The moment is
-- a query of its own, or the index of time would not be used.
create or replace function nexus_api.activity(p_lease interval, p_window interval default '5 minutes')
returns table (in_flight bigint, waiting_for_retry bigint, instances int, calls bigint, calls_per_second double precision,
               failed_calls bigint, failures jsonb, p50_ms double precision, p95_ms double precision,
               p99_ms double precision)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.read_streams(p_request_ids uuid[], p_after int[], p_limit int)
returns table (place int, number int, discard boolean, text text, reasoning text, tool_calls jsonb)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.read_chunks(p_request_id uuid, p_after int, p_limit int)
returns table (number int, discard boolean, text text, reasoning text, tool_calls jsonb)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select s.number, s.discard, s.text, s.reasoning, s.tool_calls
  from nexus_api.read_streams(array[p_request_id], array[p_after], p_limit) s
$$;

-- What the limits and budgets stand at. The limit is the smallest that a live instance's settings name for the scope; an
-- agent without a row of its own has that of agent:*. level is what a rate has left, held what calls under way, and blocks of
-- workers, set aside of calls at once and of budgets.
create or replace function nexus_api.limits()
returns table (scope text, kind text, period date, "limit" numeric, spent numeric, held numeric, level numeric)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.amend_result(p_request_id uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.costs(
  p_since timestamptz, p_until timestamptz, p_by text[], p_agent_id text default null,
  out model text, out provider text, out agent text, out task_type text, out complexity text, out day date,
  out hour timestamptz, out outcome text, out calls bigint, out prompt_tokens bigint, out completion_tokens bigint,
  out cached_tokens bigint, out cache_write_tokens bigint, out reasoning_tokens bigint, out cost numeric,
  out estimated_cost numeric, out calls_of_unknown_cost bigint, out estimated_calls bigint)
returns setof record
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.watch_queues()
returns table (queue text, depth bigint, ready bigint, oldest_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.watch_parked() returns table (scope text, requests bigint, oldest_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.watch_calls_in_flight() returns table (provider text, model text, calls bigint)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.watch_calls(p_window interval)
returns table (provider text, model text, calls bigint, failures jsonb, tokens bigint, cost numeric, p50_ms double precision,
               p95_ms double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.watch_limits()
returns table (scope text, kind text, "limit" numeric, spent numeric, held numeric, used double precision)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.spent(p_since timestamptz) returns table (cost numeric, tokens bigint, unpriced bigint)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select coalesce(sum(a.cost), 0), coalesce(sum(a.prompt_tokens + a.completion_tokens), 0)::bigint,
         count(*) filter (where a.cost is null and a.prompt_tokens + a.completion_tokens > 0)
  from nexus.attempts a where a.started_at >= p_since
$$;

-- All that is to be seen now. p_lease is for instances that told no lease.
create or replace function nexus_api.watch(p_lease interval, p_window interval) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
create or replace function nexus_api.breakers()
returns table (provider text, model text, reason text, opened_at timestamptz, open_for double precision, times int)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select b.provider, b.model, b.reason, b.opened_at,
         greatest(0, extract(epoch from b.open_until - clock_timestamp()))::double precision, b.times
  from nexus.breakers b
  where b.reason = 'failures' or b.open_until > clock_timestamp()
  order by 1, 2
$$;

-- How the models did in the last seconds, by the books: the median of their answers, and the share of calls that were
-- answered, without those whose outcome says nothing of the vendor; beside them the breakers that are open.
create or replace function nexus_api.standings(p_seconds double precision, p_not_the_vendors text[])
returns table (provider text, model text, calls bigint, latency_ms double precision, success_rate double precision,
               open_for double precision)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
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
