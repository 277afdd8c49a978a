-- Deferred tasks: they wait for an answer and hold no worker, no lease and no connection. Whoever has the token ends them
-- in his own transaction; past the deadline they fail.

create or replace function pgflow.defer_tasks(
  p_worker_id uuid, p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[], p_attempts int[], p_tokens uuid[],
  p_until timestamptz[], p_details jsonb[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_deferred pgflow.task_key[];
begin
  with named as materialized (
    select i.* from unnest(p_run_ids, p_step_slugs, p_task_indexes, p_attempts, p_tokens, p_until, p_details)
      as i (run_id, step_slug, task_index, attempt, token, until, details)
    order by i.run_id, i.step_slug, i.task_index
  ), deferred as (
    update pgflow.step_tasks t
    set deferred_until = i.until, deferral_token = i.token, deferral = i.details, last_worker_id = null
    from named i where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning row(t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id)::pgflow.task_key as task
  )
  select array_agg(d.task) into v_deferred from deferred d;
  if v_deferred is not null then
    v_deferred := pgflow.keep_open(v_deferred);
    return query
      select t.deferral_token from unnest(v_deferred) k
      join pgflow.step_tasks t on t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  end if;
end
$$;

-- The tasks that still wait for these tokens, with the attempt that waits, in the order of the tokens. The index over
-- tokens is the only one that fits the inner part: that over deadlines looked cheaper while few tasks waited.
create or replace function pgflow.waiting_tasks(p_tokens uuid[])
returns table (token uuid, run_id uuid, step_slug text, task_index int, attempt int, n bigint)
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
begin
  return query
    select i.token, w.run_id, w.step_slug, w.task_index, w.attempts_count, i.n
    from unnest(p_tokens) with ordinality as i (token, n)
    cross join lateral (select t.* from pgflow.step_tasks t where t.deferral_token = i.token offset 0) w
    where w.status = 'started' and w.deferred_until is not null;
end
$$;

-- Complete waiting tasks; returns the tokens whose tasks were completed by this.
create or replace function pgflow.complete_deferred(p_tokens uuid[], p_outputs jsonb[], p_notify boolean default true)
returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_tokens uuid[];
  v_runs uuid[];
  v_steps text[];
  v_indexes int[];
  v_attempts int[];
  v_outputs jsonb[];
begin
  select array_agg(w.token order by w.run_id, w.step_slug, w.task_index), array_agg(w.run_id order by w.run_id, w.step_slug, w.task_index),
         array_agg(w.step_slug order by w.run_id, w.step_slug, w.task_index), array_agg(w.task_index order by w.run_id, w.step_slug, w.task_index),
         array_agg(w.attempt order by w.run_id, w.step_slug, w.task_index), array_agg(p_outputs[w.n] order by w.run_id, w.step_slug, w.task_index)
  into v_tokens, v_runs, v_steps, v_indexes, v_attempts, v_outputs
  from pgflow.waiting_tasks(p_tokens) w;
  if v_tokens is not null then
    return query
      with refused as (
        select c.run_id, c.step_slug, c.task_index
        from pgflow.complete_tasks(null, v_runs, v_steps, v_indexes, v_attempts, v_outputs, p_notify => p_notify) c where c.outcome = 'refused'
      )
      select i.token from unnest(v_tokens, v_runs, v_steps, v_indexes) as i (token, run_id, step_slug, task_index)
      where not exists (select from refused r where r.run_id = i.run_id and r.step_slug = i.step_slug and r.task_index = i.task_index);
  end if;
end
$$;

-- Fail waiting tasks for good, or where p_final says so as a failed attempt; returns the tokens that were waited for.
create or replace function pgflow.fail_deferred(
  p_tokens uuid[], p_errors text[], p_final boolean[] default null, p_notify boolean default true
) returns setof uuid
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_tokens uuid[];
  v_runs uuid[];
  v_steps text[];
  v_indexes int[];
  v_attempts int[];
  v_errors text[];
  v_final boolean[];
begin
  select array_agg(w.token), array_agg(w.run_id), array_agg(w.step_slug), array_agg(w.task_index), array_agg(w.attempt),
         array_agg(p_errors[w.n]), array_agg(coalesce(p_final[w.n], true))
  into v_tokens, v_runs, v_steps, v_indexes, v_attempts, v_errors, v_final
  from (select * from pgflow.waiting_tasks(p_tokens) order by run_id, step_slug, task_index) w;
  if v_tokens is not null then
    return query
      with ended as (
        select f.outcome, f.run_id, f.step_slug, f.task_index
        from pgflow.fail_tasks(null, v_runs, v_steps, v_indexes, v_attempts, v_errors, v_final,
                               array_fill(null::double precision, array[cardinality(v_runs)]), p_notify) f
      )
      select i.token from unnest(v_tokens, v_runs, v_steps, v_indexes) as i (token, run_id, step_slug, task_index)
      join ended e on e.run_id = i.run_id and e.step_slug = i.step_slug and e.task_index = i.task_index and e.outcome <> 'refused';
  end if;
end
$$;

-- Answer a step that waits for a signal: its task completes with the payload. PN011 when it does not wait.
create or replace function pgflow.signal(run_id uuid, step_slug text, payload jsonb, task_index int default 0) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
#variable_conflict use_column
declare
  v_token uuid;
  v_state text;
begin
  select t.deferral_token into v_token from pgflow.step_tasks t
  where t.run_id = signal.run_id and t.step_slug = signal.step_slug and t.task_index = signal.task_index
    and t.deferred_until is not null and coalesce(t.deferral ->> 'kind', 'signal') = 'signal';
  if exists (select from pgflow.complete_deferred(array[v_token], array[signal.payload])) then
    return;
  end if;
  select format('is %s', st.status) into v_state from pgflow.step_states st
  where st.run_id = signal.run_id and st.step_slug = signal.step_slug;
  raise exception using errcode = 'PN011', message = format(
    'run %s: step %s (task %s) does not wait for a signal: %s', signal.run_id, signal.step_slug, signal.task_index,
    case when not exists (select from pgflow.runs r where r.run_id = signal.run_id) then 'there is no such run'
         else coalesce(v_state, 'the run has no such step') end);
end
$$;

-- Fail waiting tasks whose deadline has passed; returns how many.
create or replace function pgflow.expire_deferred(p_limit int) returns int
language plpgsql set search_path = pg_catalog, pgflow, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_tokens uuid[];
begin
  select array_agg(d.deferral_token) into v_tokens from (
    select t.deferral_token from pgflow.step_tasks t
    where t.deferred_until <= clock_timestamp() order by t.deferred_until limit p_limit for update skip locked) d;
  if v_tokens is null then
    return 0;
  end if;
  perform pgflow.fail_deferred(v_tokens, array_fill('no answer came before its deadline'::text, array[cardinality(v_tokens)]));
  return cardinality(v_tokens);
end
$$;

-- What a handler tells of its progress; false when the task is not this worker's any more.
create or replace function pgflow.report_progress(
  p_worker_id uuid, p_run_id uuid, p_step_slug text, p_task_index int, p_attempt int, p_progress jsonb
) returns boolean
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_task pgflow.task_key[];
begin
  with told as (
    update pgflow.step_tasks t set progress = p_progress
    where t.run_id = p_run_id and t.step_slug = p_step_slug and t.task_index = p_task_index
      and case t.status when 'started' then t.attempts_count = p_attempt and t.last_worker_id = p_worker_id end
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
  )
  select array_agg(row(t.*)::pgflow.task_key) into v_task from told t;
  v_task := pgflow.keep_open(v_task);
  if v_task is null then
    return false;
  end if;
  perform pgflow.notify_runs(array[p_run_id]);
  return true;
end
$$;
