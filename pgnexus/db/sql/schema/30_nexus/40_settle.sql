-- T3: end a batch of requests. Completion, publishing and the books are one transaction.

-- Each item: {run_id, step, attempt, outcome, result | details, error, delay, reply_to, calls}, where outcome is
--   success  publish result (docs/wire.md) and complete the run; saving is what may be kept of the answer
--   failed   fail the run; details is laid over the failure that is published
--   retry    put it back for a later attempt, after delay seconds
--   release  put it back at once; counts no attempt
--   park     put it back until its turn in the line of scope; counts no attempt that called no provider
-- and calls are rows of nexus.attempts, booked whatever becomes of the rest.
-- Returns the runs that were settled; those that are missing had been taken from this worker.
-- (Here and in other functions that begin a transaction plans made while tables are small must do while they grow. jit: what has
-- no index after all would otherwise be compiled for its nominal cost.)
create function nexus.settle(p_worker_id uuid, p_items jsonb[], p_notify boolean default true) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
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
    order by i.item ->> 'outcome' = 'park'  -- last: who parks holds flights that others may be ending
  loop
    v_done := array(select nexus.settle_all(v_outcome, p_worker_id, v_runs, v_steps, v_attempts, v_items, p_notify));
    v_settled := v_settled || v_done;
  end loop;
  if cardinality(v_settled) < cardinality(p_items) then
    perform nexus.note_late(p_items, v_settled);
  end if;
  return query select unnest(v_settled);
end
$$;

create function nexus.settle_all(
  p_outcome text, p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_items jsonb[], p_notify boolean
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_done uuid[];
  v_again uuid[];
begin
  if p_outcome = 'success' then
    v_done := array(select pgflow.complete_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array_fill(null::jsonb, array[cardinality(p_runs)])));  -- the result tells it all
    v_again := nexus.called_before(p_items);
    perform nexus.publish(
      array_agg(coalesce(i.item ->> 'reply_to', 'ai_results')),
      array_agg(case when i.run_id = any (v_again) then nexus.count_calls(i.item -> 'result', i.run_id)
                     else i.item -> 'result' end), p_notify)
    from unnest(p_runs, p_items) as i (run_id, item) where i.run_id = any (v_done)
    having count(*) > 0;
    if exists (select from unnest(p_items) as i (item) where i.item ? 'saving') then
      perform nexus.save_answers(array(
        select i.item from unnest(p_runs, p_items) as i (run_id, item)
        where i.run_id = any (v_done) and i.item ? 'saving'));
    end if;
  elsif p_outcome = 'failed' then
    v_done := array(select pgflow.fail_chains(
      'llm_request_workflow', p_worker_id, p_runs, p_steps, p_attempts,
      array(select i.item ->> 'error' from unnest(p_items) with ordinality as i (item, n) order by i.n),
      array(select i.item -> 'details' from unnest(p_items) with ordinality as i (item, n) order by i.n)));
  elsif p_outcome = 'park' then
    v_done := array(select nexus.park(
      p_worker_id, array_agg(i.run_id), array_agg(i.step), array_agg(i.attempt), array_agg(i.item ->> 'scope'),
      array_agg(i.item ->> 'priority'), array_agg(i.item ->> 'agent_id'), array_agg(i.item ->> 'deadline'),
      array_agg(coalesce(jsonb_array_length(i.item -> 'calls') > 0, false)))
      from unnest(p_runs, p_steps, p_attempts, p_items) as i (run_id, step, attempt, item));
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
