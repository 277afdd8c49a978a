-- Cancelling, and the sweep: what must happen on the caller's side also when no nexus is alive.

-- Cancel requests that have not ended; returns those that were cancelled by this.
create function pgnexus.cancel(p_request_ids uuid[]) returns setof uuid
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
create function pgnexus.unschedule(p_request_ids uuid[]) returns void
language sql set search_path = pg_catalog, pgnexus, pg_temp as $$
  delete from pgnexus.scheduled_requests s where s.request_id in (
    select d.request_id from pgnexus.scheduled_requests d where d.request_id = any (p_request_ids)
    for update skip locked)
$$;

create function pgnexus.notify_done(p_request_ids uuid[]) returns void
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
create function pgnexus.send_due(p_limit int) returns int
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
create function pgnexus.time_out_overdue(p_limit int, p_all boolean default false) returns int
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
create function pgnexus.sweep(p_limit int, p_all boolean default false)
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
