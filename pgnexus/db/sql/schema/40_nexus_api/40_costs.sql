-- What provider calls cost: for the caller's side to ask, and for its stored results to be told late.

-- Give a request's stored result the sum of all its calls. True when that is done, or when there is no such row; false while
-- the row has no end yet, or somebody else is at it: it waits for nobody.
create function nexus_api.amend_result(p_request_id uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
begin
  perform from pgnexus.job_results j where j.request_id = p_request_id and j.finished_at is not null for update skip locked;
  if not found then
    return not exists (select from pgnexus.job_results j where j.request_id = p_request_id);
  end if;
  update pgnexus.job_results j
  set prompt_tokens = s.prompt_tokens, completion_tokens = s.completion_tokens,
      total_tokens = s.prompt_tokens + s.completion_tokens, cached_tokens = s.cached_tokens, cost = s.cost,
      attempts = s.calls, reasoning_tokens = nullif(s.reasoning_tokens, 0),
      cache_write_tokens = nullif(s.cache_write_tokens, 0),
      output = case when s.estimated then coalesce(j.output, '{}') || '{"estimated": true}' else j.output - 'estimated' end
  from nexus.sum_of_calls(p_request_id) s
  where j.request_id = p_request_id and s.calls > 0;
  return true;
end
$$;

-- Calls, tokens and cost of the calls that began in [p_since, p_until), by any of the names below; what is not asked for is
-- null in every row. cost is the sum of the known ones; estimated_cost is the part of it that no vendor has told.
create function nexus_api.costs(
  p_since timestamptz, p_until timestamptz, p_by text[], p_agent_id text default null,
  out model text, out provider text, out agent text, out task_type text, out complexity text, out day date,
  out hour timestamptz, out outcome text, out calls bigint, out prompt_tokens bigint, out completion_tokens bigint,
  out cached_tokens bigint, out cache_write_tokens bigint, out reasoning_tokens bigint, out cost numeric,
  out estimated_cost numeric, out calls_of_unknown_cost bigint, out estimated_calls bigint)
returns setof record
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
#variable_conflict use_column
declare
  v_unknown text := (select b.name from unnest(p_by) as b (name)
                     where b.name <> all ('{model,provider,agent,task_type,complexity,day,hour,outcome}') limit 1);
begin
  if v_unknown is not null then
    raise exception using errcode = 'PN002',
      message = format('costs: there is no "%s"; use model, provider, agent, task_type, complexity, day, hour or outcome', v_unknown);
  end if;
  return query
  select case when 'model' = any (p_by) then a.model end,
         case when 'provider' = any (p_by) then a.provider end,
         case when 'agent' = any (p_by) then a.agent_id end,
         case when 'task_type' = any (p_by) then a.task_type end,
         case when 'complexity' = any (p_by) then a.complexity end,
         case when 'day' = any (p_by) then (a.started_at at time zone 'UTC')::date end,
         case when 'hour' = any (p_by) then date_trunc('hour', a.started_at, 'UTC') end,
         case when 'outcome' = any (p_by) then a.outcome end,
         count(*), sum(a.prompt_tokens)::bigint, sum(a.completion_tokens)::bigint, sum(a.cached_tokens)::bigint,
         sum(a.cache_write_tokens)::bigint, sum(a.reasoning_tokens)::bigint, sum(a.cost),
         sum(a.cost) filter (where a.estimated),
         count(*) filter (where a.cost is null and (a.outcome = 'success' or a.prompt_tokens + a.completion_tokens > 0)),
         count(*) filter (where a.estimated)
  from nexus.attempts a
  where (p_since is null or a.started_at >= p_since) and (p_until is null or a.started_at < p_until)
    and (p_agent_id is null or a.agent_id = p_agent_id)
  group by 1, 2, 3, 4, 5, 6, 7, 8;
end
$$;
