-- Starting runs.

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
