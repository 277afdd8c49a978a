-- Instances and their signs of life. A task's lease is its worker's: one row renewed every few seconds for all
-- the tasks a process runs.

-- A sign of life; registers the worker when it is new, and revives one that had been given up. Returns whether
-- it had been given up: its tasks have been handed to others, and whatever it completes of them is refused.
create function pgflow.heartbeat(
  p_worker_id uuid, p_queue_name text, p_function_name text, p_lease interval default null
) returns boolean
language plpgsql set search_path = pg_catalog, pgflow as $$
declare
  v_stopped_at timestamptz;
begin
  select w.stopped_at into v_stopped_at from pgflow.workers w where w.worker_id = p_worker_id for update;
  insert into pgflow.workers as w (worker_id, queue_name, function_name, lease)
  values (p_worker_id, p_queue_name, p_function_name, p_lease)
  on conflict on constraint workers_pkey do update
  set last_heartbeat_at = clock_timestamp(), stopped_at = null, lease = p_lease;
  return v_stopped_at is not null;
end
$$;

create function pgflow.mark_worker_stopped(worker_id uuid) returns void
language sql set search_path = pg_catalog, pgflow as $$
  update pgflow.workers w set stopped_at = clock_timestamp() where w.worker_id = mark_worker_stopped.worker_id
$$;

-- Give back the tasks of workers that gave no sign of life for as long as their own lease, p_lease where they told none:
-- not that of whoever asks, which may be shorter than his neighbours' heartbeats. An attempt was spent. A task that has
-- none left, or that lost its fifth worker, fails with its run: it may be what kills them. After a restart of the server
-- everybody is granted one lease to come back.
create function pgflow.recover_tasks(p_lease interval default '12 seconds') returns table (run_id uuid, exhausted boolean)
language plpgsql set search_path = pg_catalog, pgflow as $$
#variable_conflict use_column
declare
  v_flow text;
  v_back uuid[];
  v_lost uuid[];
begin
  update pgflow.workers w set stopped_at = clock_timestamp()
  where w.worker_id in (
    select d.worker_id from pgflow.workers d
    where d.stopped_at is null and d.last_heartbeat_at < clock_timestamp() - coalesce(d.lease, p_lease)
      and pg_postmaster_start_time() < clock_timestamp() - coalesce(d.lease, p_lease)
    for update skip locked);
  for v_flow in
    select distinct t.flow_slug from pgflow.step_tasks t join pgflow.workers w on w.worker_id = t.last_worker_id
    where t.status = 'started' and w.stopped_at is not null
  loop
    with stranded as (
      select t.run_id, t.step_slug, t.task_index,
             t.requeued_count >= 4 or t.attempts_count >= coalesce(s.opt_max_attempts, f.opt_max_attempts) as exhausted
      from pgflow.step_tasks t
      join pgflow.workers w on w.worker_id = t.last_worker_id
      join pgflow.steps s on s.flow_slug = t.flow_slug and s.step_slug = t.step_slug
      join pgflow.flows f on f.flow_slug = t.flow_slug
      where t.status = 'started' and t.flow_slug = v_flow and w.stopped_at is not null
      order by t.run_id
      for update of t skip locked
    ), moved as (
      update pgflow.step_tasks t
      set status = case when d.exhausted then 'failed' else 'queued' end,
          failed_at = case when d.exhausted then now() end,
          error_message = 'its worker was lost in attempt ' || t.attempts_count,
          started_at = null, requeued_count = t.requeued_count + 1, last_requeued_at = now()
      from stranded d
      where (t.run_id, t.step_slug, t.task_index) = (d.run_id, d.step_slug, d.task_index)
      returning t.run_id, d.exhausted
    )
    select array_agg(m.run_id) filter (where not m.exhausted), array_agg(m.run_id) filter (where m.exhausted)
    into v_back, v_lost from moved m;
    perform pgflow.send_queued(v_flow, v_back);
    perform pgflow.fail_runs(
      v_lost, array_fill('its worker was lost in every attempt'::text, array[coalesce(cardinality(v_lost), 0)]), false);
    return query select unnest(v_back), false union all select unnest(v_lost), true;
  end loop;
end
$$;
