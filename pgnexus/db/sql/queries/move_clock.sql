-- For tests: whatever waits for a time waits pgnexus.moved_by seconds less. A block, since queues are known at run time.
do $$
declare
  v_by interval := make_interval(secs => current_setting('pgnexus.moved_by')::double precision);
  v_lanes text[] := '{ai_requests_interactive,ai_requests,ai_requests_batch}';
  v_queue text;
begin
  perform from pgflow.step_tasks t where t.not_before is not null or t.status = 'started'
  order by t.run_id, t.step_slug, t.task_index for update;  -- the order in which everybody locks
  update pgflow.step_tasks t
  set not_before = t.not_before - v_by, deferred_until = t.deferred_until - v_by,
      started_at = case when t.status = 'started' then t.started_at - v_by else t.started_at end
  where t.not_before is not null or t.status = 'started';

  update pgflow.runs r
  set input = jsonb_set(r.input, '{deadline}', to_jsonb(nexus.try_timestamptz(r.input ->> 'deadline') - v_by))
  where r.flow_slug = 'llm_request_workflow' and r.status = 'started'
    and nexus.try_timestamptz(r.input ->> 'deadline') is not null;

  for v_queue in
    select m.queue_name from pgmq.meta m
    where m.queue_name = any (v_lanes) or m.queue_name = 'ai_results'
       or m.queue_name in (select pgflow.queue_of(f.flow_slug) from pgflow.flows f)
    order by 1
  loop
    execute format('update pgmq.%I q set vt = q.vt - $1 where q.vt > clock_timestamp()', pgmq.format_table_name(v_queue, 'q'))
    using v_by;
    if v_queue = any (v_lanes) then
      execute format(
        'update pgmq.%I q
         set message = jsonb_set(q.message, ''{deadline}'', to_jsonb(nexus.try_timestamptz(q.message ->> ''deadline'') - $1))
         where nexus.try_timestamptz(q.message ->> ''deadline'') is not null', pgmq.format_table_name(v_queue, 'q'))
      using v_by;
    end if;
  end loop;

  update pgnexus.sweeps s set swept_to = s.swept_to - v_by;  -- or what is overdue now would be taken for swept
  update pgnexus.job_results j set deadline = j.deadline - v_by
  where j.deadline is not null and j.status in ('scheduled', 'enqueued');
  update pgnexus.scheduled_requests s
  set due_at = s.due_at - v_by,
      message = case when nexus.try_timestamptz(s.message ->> 'deadline') is null then s.message
                     else jsonb_set(s.message, '{deadline}', to_jsonb(nexus.try_timestamptz(s.message ->> 'deadline') - v_by)) end;
  update pgnexus.idempotency_keys k set expires_at = k.expires_at - v_by;
end
$$
