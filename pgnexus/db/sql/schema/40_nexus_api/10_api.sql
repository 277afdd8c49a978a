-- The few things that cross from one side to the other. SECURITY DEFINER: they may do what their caller's role
-- may not, so each does one thing and fixes its search_path; pg_temp stands last in it, or a caller's temporary types and
-- tables would be found before all others.

create schema nexus_api;

-- Create a queue for results and let both sides use it.
create function nexus_api.create_queue(queue_name text) returns void
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
create function nexus_api.takes_results(queue_name text) returns boolean
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select queue_name not like 'ai\_requests%'
     and not exists (select from pgflow.flows f
                     where coalesce(f.queue_name, pgflow.queue_name(f.flow_slug)) = takes_results.queue_name)
     and exists (select from pgmq.meta m where m.queue_name = takes_results.queue_name)
$$;

-- Put a message that was taken off a queue into that queue's archive, with the reason in its headers. With the rights of
-- whoever took it: an archive is evidence.
create function nexus_api.archive_message(p_queue text, p_message pgmq.message_record, p_reason text) returns void
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
create function nexus_api.cancel(p_request_ids uuid[]) returns void
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
create function nexus_api.live_instances(p_lease interval) returns int
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select count(*)::int from pgflow.workers w
  where w.queue_name = 'llm_request_workflow' and w.stopped_at is null
    and w.last_heartbeat_at > clock_timestamp() - coalesce(w.lease, p_lease)
$$;

-- The models that live instances know, and whether any of them can use it now.
create function nexus_api.available_models(p_lease interval)
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
create function nexus_api.queue_metrics()
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
create function nexus_api.activity(p_lease interval, p_window interval default '5 minutes')
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
