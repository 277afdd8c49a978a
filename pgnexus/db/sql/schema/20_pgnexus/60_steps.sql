-- LLM steps of flows: a task that waits for the answer to a request ends in the transaction that ends the request.
-- Whoever calls these holds rows of job_results; the tasks', steps' and runs' rows are locked after those, never before.

-- A fault of the moment, and not of what is stored: it is to be raised, so that all is tried once more.
create or replace function pgnexus.is_passing(p_sqlstate text) returns boolean
language sql immutable parallel safe as $$
  select left(p_sqlstate, 2) in ('40', '53', '55', '57', '58')
$$;

-- The tasks that wait for these requests, in the order in which everybody locks them. The index over tokens is the only
-- one that fits the inner part, however few tasks waited when this was planned.
create or replace function pgnexus.waiting_steps(p_request_ids uuid[]) returns setof pgflow.step_tasks
language plpgsql stable
set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
begin
  return query
    select w.* from unnest(p_request_ids) i (request_id)
    cross join lateral (select t.* from pgflow.step_tasks t where t.deferral_token = i.request_id offset 0) w
    where w.deferred_until is not null and w.deferral ->> 'kind' = 'llm'
    order by w.run_id, w.step_slug, w.task_index;
end
$$;

-- End the waiting tasks of requests that have just ended; a look into one index when no task waits.
create or replace function pgnexus.settle_steps(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_waiting uuid[];
begin
  v_waiting := array(select w.deferral_token from pgnexus.waiting_steps(p_request_ids) w);
  if cardinality(v_waiting) > 0 then
    perform pgnexus.settle_or_single_out(v_waiting);
  end if;
end
$$;

-- Settle all at once; if that raises, one by one, so that one run's fault neither undoes the results of others nor
-- keeps them from their runs. What cannot even be failed is left to its deadline.
create or replace function pgnexus.settle_or_single_out(p_tokens uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_token uuid;
  v_fault text;
begin
  begin
    perform pgnexus.settle_waiting(p_tokens);
    return;
  exception when others then
    if pgnexus.is_passing(sqlstate) then
      raise;
    end if;
  end;
  perform pgnexus.hold_waiting(p_tokens);
  foreach v_token in array p_tokens loop
    v_fault := null;
    begin
      perform pgnexus.settle_waiting(array[v_token]);
    exception when others then
      if pgnexus.is_passing(sqlstate) then
        raise;
      end if;
      v_fault := sqlerrm;
    end;
    if v_fault is not null then
      begin
        perform pgflow.fail_deferred(array[v_token], array[left('the answer cannot be taken in: ' || v_fault, 4000)]);
      exception when others then
        if pgnexus.is_passing(sqlstate) then
          raise;
        end if;
        raise warning 'request %: the step that waits for it is left to its deadline: %', v_token, sqlerrm;
      end;
    end if;
  end loop;
end
$$;

create or replace function pgnexus.settle_waiting(p_tokens uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_done uuid[];
  v_outputs jsonb[];
  v_failed uuid[];
  v_errors text[];
  v_final boolean[];
begin
  select array_agg(a.token) filter (where a.error is null), array_agg(a.output) filter (where a.error is null),
         array_agg(a.token) filter (where a.error is not null), array_agg(a.error) filter (where a.error is not null),
         array_agg(a.final) filter (where a.error is not null)
  into v_done, v_outputs, v_failed, v_errors, v_final
  from pgnexus.step_answers(p_tokens) a;
  if v_done is not null and v_failed is not null then
    perform pgnexus.hold_waiting(p_tokens);  -- else the second call would lock tasks after the first one's runs
  end if;
  if v_done is not null then
    perform pgflow.complete_deferred(v_done, v_outputs);
  end if;
  if v_failed is not null then
    perform pgflow.fail_deferred(v_failed, v_errors, v_final);
  end if;
end
$$;

-- Hold all that ending these tasks may change, in the order in which everybody locks (see pgflow's 34_failures).
create or replace function pgnexus.hold_waiting(p_tokens uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_tasks pgflow.task_key[];
begin
  select array_agg(row(h.*)::pgflow.task_key) into v_tasks from (
    select t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id from pgflow.step_tasks t
    where t.deferral_token = any (p_tokens) and t.deferral_token is not null
    order by t.run_id, t.step_slug, t.task_index for no key update) h;
  perform from pgflow.hold_steps(v_tasks);
  perform pgflow.hold_runs(array(select distinct k.run_id from unnest(v_tasks) k), true);
end
$$;

-- What the requests' ends mean to the tasks that wait for them: an output, or an error, which is final where asking
-- again would not help.
create or replace function pgnexus.step_answers(p_tokens uuid[]) returns table (token uuid, output jsonb, error text, final boolean)
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
begin
  return query
    select w.deferral_token, a.output, a.error, a.final
    from pgnexus.waiting_steps(p_tokens) w
    join pgnexus.job_results j on j.request_id = w.deferral_token and j.finished_at is not null
    cross join lateral pgnexus.step_answer(j, w.deferral -> 'details') a;
end
$$;

-- p_details: `as` is what of the answer becomes the output: "text", "json" (the JSON in it; `field`: what of that, where
-- the JSON is an object around it) or "result" (all there is to know).
create or replace function pgnexus.step_answer(
  p_request pgnexus.job_results, p_details jsonb, out output jsonb, out error text, out final boolean
)
language plpgsql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
declare
  v_text text := p_request.output ->> 'response';
  v_field text := p_details ->> 'field';
begin
  if p_request.status <> 'success' then
    error := left(format('%s: %s', p_request.error ->> 'type', p_request.error ->> 'message'), 4000);
    final := p_request.error -> 'retryable' is distinct from 'true';
  elsif p_details ->> 'as' = 'result' then
    output := pgnexus.result_of(p_request);
  elsif p_details ->> 'as' = 'json' then
    final := false;
    output := pgnexus.json_in(v_text);
    if output is null then
      error := format('the answer is not JSON: %s', left(v_text, 500));
    elsif v_field is not null and jsonb_typeof(output) = 'object' then
      error := case when not output ? v_field then format('the answer has no field "%s": %s', v_field, left(v_text, 500)) end;
      output := output -> v_field;
    end if;
  else
    output := to_jsonb(coalesce(v_text, ''));
  end if;
end
$$;

-- The JSON that a text is, or that is in its one block of code; null when there is none.
create or replace function pgnexus.json_in(p_text text) returns jsonb
language plpgsql immutable parallel safe set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  return coalesce(substring(p_text from '^\s*```(?:json|JSON)?\s*\n(.*)\n\s*```\s*$'), p_text)::jsonb;
exception when data_exception or program_limit_exceeded then
  return null;
end
$$;

-- A stored result in the form of the wire.
create or replace function pgnexus.result_of(p_request pgnexus.job_results) returns jsonb
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select case when jsonb_typeof(p_request.output) = 'object' then p_request.output else '{}' end
    || jsonb_strip_nulls(jsonb_build_object(
      'request_id', p_request.request_id, 'status', p_request.status, 'agent_id', p_request.agent_id,
      'model', p_request.model, 'provider', p_request.provider, 'cost', p_request.cost::text,
      'usage', jsonb_build_object(
        'prompt_tokens', coalesce(p_request.prompt_tokens, 0), 'completion_tokens', coalesce(p_request.completion_tokens, 0),
        'total_tokens', coalesce(p_request.total_tokens, 0), 'cached_tokens', coalesce(p_request.cached_tokens, 0)),
      'latency_ms', p_request.duration_ms, 'attempts', p_request.attempts, 'timestamp', p_request.finished_at))
$$;

-- A step that ended otherwise leaves a request behind that may still cost money. Whoever ends steps holds rows of runs and
-- may not lock job_results then, so this only notes it; the sweep cancels it. Definer: the nexus side ends steps, too.
create or replace function pgnexus.abandon_request() returns trigger
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  insert into pgnexus.abandoned_requests (request_id)
  select j.request_id from pgnexus.job_results j
  where j.request_id = old.deferral_token and j.status in ('scheduled', 'enqueued')
  on conflict do nothing;
  if found then
    perform pg_notify('pgnexus_abandoned', '');
  end if;
  return null;
end
$$;

create or replace trigger abandon_request after update of deferred_until on pgflow.step_tasks for each row
  when (old.deferred_until is not null and new.status in ('failed', 'queued') and old.deferral ->> 'kind' = 'llm')
  execute function pgnexus.abandon_request();
create or replace trigger abandon_deleted_request after delete on pgflow.step_tasks for each row
  when (old.deferred_until is not null and old.deferral ->> 'kind' = 'llm')
  execute function pgnexus.abandon_request();

-- Cancel requests that no step waits for any more; returns how many were looked at. It waits for no row: what somebody is
-- ending at this moment is left to the next sweep.
create or replace function pgnexus.cancel_abandoned(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
#variable_conflict use_column
declare
  v_noted uuid[];
  v_open uuid[];
begin
  v_noted := array(select a.request_id from pgnexus.abandoned_requests a order by a.abandoned_at limit p_limit for update skip locked);
  if cardinality(v_noted) = 0 then
    return 0;
  end if;
  v_open := array(
    select j.request_id from pgnexus.job_results j
    where j.request_id = any (v_noted) and j.status in ('scheduled', 'enqueued') for update skip locked);
  perform from pgnexus.cancel(v_open);
  delete from pgnexus.abandoned_requests a
  where a.request_id = any (v_noted) and not exists (
    select from pgnexus.job_results j where j.request_id = a.request_id and j.status in ('scheduled', 'enqueued'));
  return cardinality(v_noted);
end
$$;
