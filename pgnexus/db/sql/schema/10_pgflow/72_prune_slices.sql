-- Keeping the tables small while they are used: a slice at a time, each a short transaction that waits for nobody's lock.
-- Every function of this kind, here and on both sides, takes how long to keep what has ended, where the last slice ended
-- ('' at first), how many rows to look at, and whether only to tell. It returns how many rows went (or would), about how many
-- bytes they had, and where the next slice begins, null when there is none.

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
