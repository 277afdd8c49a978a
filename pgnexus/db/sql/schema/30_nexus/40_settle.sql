-- T3: end a batch of requests. Completion, publishing and the books are one transaction.

-- Each item: {run_id, step, attempt, outcome, result | details, error, delay, reply_to, calls}, where outcome is
--   success  publish result (docs/wire.md) and complete the run
--   failed   fail the run; details is laid over the failure that is published
--   retry    put it back for a later attempt, after delay seconds
--   release  put it back at once; counts no attempt
-- and calls are rows of nexus.attempts, booked whatever becomes of the rest.
-- Returns the runs that were settled; those that are missing had been taken from this worker.
create function nexus.settle(p_worker_id uuid, p_items jsonb[], p_notify boolean default true) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_done uuid[];
  v_settled uuid[] := '{}';
  v_outcome text;
  v_runs uuid[];
  v_steps text[];
  v_attempts int[];
  v_items jsonb[];
begin
  perform nexus.book(p_worker_id, p_items);
  for v_outcome, v_runs, v_steps, v_attempts, v_items in
    select i.item ->> 'outcome', array_agg((i.item ->> 'run_id')::uuid), array_agg(i.item ->> 'step'),
           array_agg((i.item ->> 'attempt')::int), array_agg(i.item)
    from unnest(p_items) as i (item) group by 1
  loop
    v_done := array(select nexus.settle_all(v_outcome, p_worker_id, v_runs, v_steps, v_attempts, v_items, p_notify));
    v_settled := v_settled || v_done;
  end loop;
  return query select unnest(v_settled);
end
$$;

create function nexus.settle_all(
  p_outcome text, p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_items jsonb[], p_notify boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus as $$
declare
  v_done uuid[];
begin
  if p_outcome = 'success' then
    v_done := array(select pgflow.complete_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select jsonb_build_object('route_llm', (i.item -> 'result') - '{response,message}'::text[])
            from unnest(p_items) with ordinality as i (item, n) order by i.n)));
    perform nexus.publish(
      array_agg(coalesce(i.item ->> 'reply_to', 'ai_results')),
      array_agg(case when i.attempt <= 1 then i.item -> 'result'
                     else nexus.count_calls(i.item -> 'result', i.run_id, i.attempt) end), p_notify)
    from unnest(p_runs, p_attempts, p_items) as i (run_id, attempt, item) where i.run_id = any (v_done)
    having count(*) > 0;
  elsif p_outcome = 'failed' then
    v_done := array(select pgflow.fail_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select i.item ->> 'error' from unnest(p_items) with ordinality as i (item, n) order by i.n),
      array(select nexus.count_calls(i.item -> 'details', i.run_id, i.attempt)
            from unnest(p_runs, p_attempts, p_items) with ordinality as i (run_id, attempt, item, n) order by i.n)));
  else
    v_done := array(select pgflow.return_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select (i.item ->> 'delay')::double precision from unnest(p_items) with ordinality as i (item, n) order by i.n),
      array(select i.item ->> 'error' from unnest(p_items) with ordinality as i (item, n) order by i.n),
      p_outcome = 'retry'));
    if p_outcome = 'release' then
      perform pg_notify('pgnexus_requests', '');
    end if;
  end if;
  return query select unnest(v_done);
end
$$;

-- track_metrics: every provider call into the books, also of requests that others have ended meanwhile.
create function nexus.book(p_worker_id uuid, p_items jsonb[]) returns void
language sql set search_path = pg_catalog, nexus as $$
  insert into nexus.attempts (
    request_id, attempt, call, instance_id, provider, model, complexity, task_type, agent_id, outcome, error, started_at,
    duration_ms, prompt_tokens, completion_tokens, cached_tokens, cost)
  select (i.item ->> 'run_id')::uuid, (i.item ->> 'attempt')::int, c.call, p_worker_id, c.provider, c.model,
         i.item ->> 'complexity', i.item ->> 'task_type', i.item ->> 'agent_id', c.outcome, c.error, c.started_at,
         c.duration_ms, coalesce(c.prompt_tokens, 0), coalesce(c.completion_tokens, 0), coalesce(c.cached_tokens, 0),
         c.cost
  from unnest(p_items) as i (item)
  cross join lateral jsonb_to_recordset(i.item -> 'calls') as c (
    call int, provider text, model text, outcome text, error text, started_at timestamptz, duration_ms int,
    prompt_tokens bigint, completion_tokens bigint, cached_tokens bigint, cost numeric)
  on conflict do nothing
$$;

-- A request that was taken up more than once: its result counts the provider calls of all those times.
create function nexus.count_calls(p_message jsonb, p_run_id uuid, p_attempt int) returns jsonb
language sql stable set search_path = pg_catalog, nexus as $$
  select case when p_attempt <= 1 then p_message else p_message || jsonb_build_object('attempts', (
    select count(*) from nexus.attempts a where a.request_id = p_run_id)) end
$$;
