-- The books: every provider call is a row of nexus.attempts.

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
