-- Control of runs and flows by people and programs.

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
