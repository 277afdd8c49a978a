-- Versions: a changed shape is compiled beside the old one, so that runs in flight end on the shape they began with.

-- The newest version of a name, or the slug itself where it is no name; null when there is neither.
create or replace function pgflow.newest_version(p_name text) returns text
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
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
