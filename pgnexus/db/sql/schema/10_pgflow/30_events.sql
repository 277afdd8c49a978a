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
