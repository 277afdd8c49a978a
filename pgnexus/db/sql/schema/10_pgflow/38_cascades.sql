-- The contract's functions on one run: the same pieces as in advance, one by one.

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
