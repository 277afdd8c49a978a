-- Keeping the nexus side's tables small, in slices as pgflow/72_prune_slices.sql has them.

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
