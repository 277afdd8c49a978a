-- A flow's queue holds one message a task that may be claimed.

-- Put tasks' messages onto their flows' queues, p_delay seconds from now; returns the tasks with their message_id.
create or replace function pgflow.send_messages(p_tasks pgflow.task_key[], p_delay int default 0) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_sent pgflow.task_key[] := '{}';
  v_flow text;
  v_tasks pgflow.task_key[];
  v_messages jsonb[];
  v_ids bigint[];
begin
  for v_flow, v_tasks, v_messages in
    select t.flow_slug, array_agg(t order by t.n), array_agg(jsonb_build_object(
             'flow_slug', t.flow_slug, 'run_id', t.run_id, 'step_slug', t.step_slug, 'task_index', t.task_index) order by t.n)
    from (select k.flow_slug, k.run_id, k.step_slug, k.task_index, row_number() over () as n from unnest(p_tasks) k) t
    group by t.flow_slug
  loop
    v_ids := array(select pgmq.send_batch(pgflow.queue_of(v_flow), v_messages, p_delay));
    v_sent := v_sent || (
      select array_agg(row(k.flow_slug, k.run_id, k.step_slug, k.task_index, m.id)::pgflow.task_key order by k.n)
      from unnest(v_tasks) with ordinality as k (flow_slug, run_id, step_slug, task_index, message_id, n)
      join unnest(v_ids) with ordinality as m (id, n) on m.n = k.n);
  end loop;
  perform pg_notify('pgflow_tasks', '') where cardinality(v_sent) > 0;
  return v_sent;
end
$$;

-- Send messages for queued tasks that have none.
create or replace function pgflow.send_queued(p_tasks pgflow.task_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_sent pgflow.task_key[];
begin
  if cardinality(p_tasks) > 0 then
    v_sent := pgflow.send_messages(p_tasks);
    update pgflow.step_tasks t set message_id = k.message_id
    from unnest(v_sent) k
    where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  end if;
end
$$;

-- Archive the messages of tasks; those without one are left out.
create or replace function pgflow.archive_messages(p_tasks pgflow.task_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_flow text;
  v_ids bigint[];
begin
  for v_flow, v_ids in
    select k.flow_slug, array_agg(k.message_id) from unnest(p_tasks) k where k.message_id is not null group by 1
  loop
    perform pgmq.archive(pgflow.queue_of(v_flow), v_ids);
  end loop;
end
$$;
