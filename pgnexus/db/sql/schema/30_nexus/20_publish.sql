-- Publishing: the last word on a request, in the transaction that ends its run.

-- Where a result goes that is wanted on a queue. One that does not exist (any more), that this side may not write to, a
-- request lane or a flow's own cannot take it: it goes to ai_results then, where it is stored all the same. What counts is
-- the role at work, also where a trigger publishes with its owner's rights.
create function nexus.result_queue(p_queue text) returns text
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp as $$
begin
  if p_queue <> 'ai_results' and nexus_api.takes_results(p_queue)
    and has_table_privilege(pgflow.caller(), to_regclass(format('pgmq.%I', 'q_' || p_queue)), 'insert')
  then
    return p_queue;
  end if;
  return 'ai_results';
end
$$;

-- Send results to the queues they are wanted on.
create function nexus.publish(p_queues text[], p_results jsonb[], p_notify boolean) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_queue text;
  v_results jsonb[];
begin
  for v_queue, v_results in
    select i.queue, array_agg(i.result) from unnest(p_queues, p_results) as i (queue, result) group by 1
  loop
    if v_queue <> 'ai_results' then
      v_queue := nexus.result_queue(v_queue);
    end if;
    if v_queue = 'ai_results' then  -- pgmq's own function plans its statements anew each time, three deep
      insert into pgmq.q_ai_results (vt, message) select clock_timestamp(), r from unnest(v_results) r;
    else
      perform pgmq.send_batch(v_queue, v_results);
    end if;
  end loop;
  if p_notify then
    perform pg_notify('pgnexus_results', '');
  end if;
end
$$;

create function nexus.failure(p_request jsonb, p_status text, p_type text, p_message text) returns jsonb
language sql stable as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'request_id', p_request -> 'request_id', 'status', p_status,
    'agent_id', case when jsonb_typeof(p_request -> 'agent_id') = 'string' then p_request -> 'agent_id' end,
    'error', jsonb_build_object('type', p_type, 'message', p_message, 'retryable', p_type in ('timeout', 'worker_lost')),
    'attempts', 0, 'timestamp', clock_timestamp()))
$$;

-- Every failed run of LLMRequestWorkflow publishes its failure here, whatever failed it: the workflow, the last
-- lost worker, a cancel, an operator. What the workflow told of it is in its failed task.
create function nexus.publish_failed_run() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_error text;
  v_details jsonb;
  v_attempts int;
begin
  delete from nexus.parked p where p.run_id = new.run_id;  -- its turn will not come
  select t.error_message, t.output, t.attempts_count into v_error, v_details, v_attempts
  from pgflow.step_tasks t where t.run_id = new.run_id and t.status = 'failed'
  order by t.failed_at desc limit 1;
  perform nexus.publish(
    array[coalesce(new.input ->> 'reply_to', 'ai_results')],
    array[nexus.count_calls(case
      when new.cancelled_at is not null then nexus.failure(new.input, 'cancelled', 'cancelled', 'cancelled')
      else nexus.failure(new.input, 'failed', 'worker_lost', coalesce(v_error, 'the run failed'))
           || jsonb_build_object('attempts', coalesce(v_attempts, 0)) || coalesce(v_details, '{}')
    end, new.run_id)],
    true);
  return null;
end
$$;

create trigger publish_failed_run
  after update of status on pgflow.runs for each row
  when (new.status = 'failed' and old.status <> 'failed' and new.flow_slug = 'llm_request_workflow')
  execute function nexus.publish_failed_run();
