-- For tests: whatever waits for a time waits pgnexus.moved_by seconds less. A block, since queues are known at run time.
-- What somebody else has locked is ending at this moment, or begins to wait after it; so nobody waits in a circle.
do $$
declare
  v_by interval := make_interval(secs => current_setting('pgnexus.moved_by')::double precision);
  v_lanes text[] := '{ai_requests_interactive,ai_requests,ai_requests_batch}';
  v_queue text;
begin
  update pgnexus.sweeps s set swept_to = s.swept_to - v_by;  -- or what is overdue now would be taken for swept

  update pgflow.step_tasks t
  set not_before = t.not_before - v_by, deferred_until = t.deferred_until - v_by,
      started_at = case when t.status = 'started' then t.started_at - v_by else t.started_at end
  from (select w.run_id, w.step_slug, w.task_index from pgflow.step_tasks w
        where w.not_before is not null or w.status = 'started' for update skip locked) w
  where t.run_id = w.run_id and t.step_slug = w.step_slug and t.task_index = w.task_index;

  update pgflow.runs r
  set input = jsonb_set(r.input, '{deadline}', to_jsonb(nexus.try_timestamptz(r.input ->> 'deadline') - v_by))
  from (select w.run_id from pgflow.runs w
        where w.flow_slug = 'llm_request_workflow' and w.status = 'started'
          and nexus.try_timestamptz(w.input ->> 'deadline') is not null for update skip locked) w
  where r.run_id = w.run_id;

  update nexus.parked p set deadline = p.deadline - v_by
  where p.run_id in (select w.run_id from nexus.parked w where w.deadline is not null for update skip locked);

  for v_queue in
    select m.queue_name from pgmq.meta m
    where m.queue_name = any (v_lanes) or m.queue_name = 'ai_results'
       or m.queue_name in (select pgflow.queue_of(f.flow_slug) from pgflow.flows f)
  loop
    execute format(
      'update pgmq.%1$I q
       set vt = case when q.vt > clock_timestamp() then q.vt - $1 else q.vt end,
           message = case when $2 and nexus.try_timestamptz(q.message ->> ''deadline'') is not null
             then jsonb_set(q.message, ''{deadline}'', to_jsonb(nexus.try_timestamptz(q.message ->> ''deadline'') - $1))
             else q.message end
       where q.msg_id in (select w.msg_id from pgmq.%1$I w where $2 or w.vt > clock_timestamp() for update skip locked)',
      pgmq.format_table_name(v_queue, 'q')) using v_by, v_queue = any (v_lanes);
  end loop;

  update pgnexus.job_results j set deadline = j.deadline - v_by
  where j.request_id in (
    select w.request_id from pgnexus.job_results w
    where w.deadline is not null and w.status in ('scheduled', 'enqueued') for update skip locked);
  update pgnexus.scheduled_requests s
  set due_at = s.due_at - v_by,
      message = case when nexus.try_timestamptz(s.message ->> 'deadline') is null then s.message
                     else jsonb_set(s.message, '{deadline}', to_jsonb(nexus.try_timestamptz(s.message ->> 'deadline') - v_by)) end
  where s.request_id in (select w.request_id from pgnexus.scheduled_requests w for update skip locked);
  update pgnexus.idempotency_keys k set expires_at = k.expires_at - v_by
  where k.key in (select w.key from pgnexus.idempotency_keys w for update skip locked);
end
$$
