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

create or replace function pgflow.calculate_retry_delay(base_delay numeric, attempts_count int) returns int
language sql immutable parallel safe as $$
  select least(floor(base_delay * 2::numeric ^ least(attempts_count, 60)), 2147483647)::int
$$;
