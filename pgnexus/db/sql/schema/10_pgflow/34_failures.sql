-- Locks, and how steps and runs end without success. Whoever fails or skips holds the runs' rows exclusively.
--
-- The order in which everybody locks, so that nobody waits in a circle: rows of tasks in the order of their keys; rows
-- of their own steps in the order of (run_id, step_slug); rows of runs in the order of run_id; messages of their own tasks. Whatever else of a run is
-- changed, is changed while its row is held exclusively, and rows of other tasks that somebody else holds are skipped: he
-- waits for the run, and finds then that it has ended. Who claims waits for nothing: what others hold, he leaves.

-- Hold the rows of the tasks' steps, in order.
create or replace function pgflow.hold_steps(p_tasks pgflow.task_key[]) returns setof pgflow.step_states
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return query
    with named as materialized (select distinct k.run_id, k.step_slug from unnest(p_tasks) k order by 1, 2)
    select st.* from named n cross join lateral (
      select * from pgflow.step_states st where st.run_id = n.run_id and st.step_slug = n.step_slug for no key update) st;
end
$$;

-- Hold the runs' rows, in order: alone where one of them will change, else shared with others that only count. Returns
-- those that are under way.
create or replace function pgflow.hold_runs(p_run_ids uuid[], p_alone boolean) returns uuid[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  if p_alone then
    return array(select h.run_id from (
      select r.run_id, r.status from pgflow.runs r where r.run_id = any (p_run_ids) order by r.run_id for no key update) h
      where h.status = 'started');
  end if;
  return array(select h.run_id from (
    select r.run_id, r.status from pgflow.runs r where r.run_id = any (p_run_ids) order by r.run_id for share) h
    where h.status = 'started');
end
$$;

-- Tasks that were ended in this transaction before it was seen that their run or step had ended: they fail with it. A step
-- whose row somebody holds is left to him: he has a task of it, and comes here himself.
create or replace function pgflow.void_tasks(p_tasks pgflow.task_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  update pgflow.step_tasks t
  set status = 'failed', failed_at = clock_timestamp(), completed_at = null, output = null, not_before = null, deferred_until = null,
      error_message = case when t.status = 'failed' then t.error_message else 'its run or step had ended' end
  from unnest(p_tasks) k where t.run_id = k.run_id and t.step_slug = k.step_slug and t.task_index = k.task_index;
  with dead as materialized (
    select distinct k.run_id, k.step_slug from unnest(p_tasks) k join pgflow.runs r on r.run_id = k.run_id and r.status = 'failed'
  ), open as materialized (
    select st.run_id, st.step_slug from dead k
    join pgflow.step_states st on st.run_id = k.run_id and st.step_slug = k.step_slug
    where st.status = 'started' for no key update of st skip locked
  )
  update pgflow.step_states st
  set status = 'failed', failed_at = clock_timestamp(), error_message = 'the run failed'
  from open o where st.run_id = o.run_id and st.step_slug = o.step_slug;
  perform pgflow.archive_messages(p_tasks);
end
$$;

-- Of tasks that are refused, those that are open though their run or step has ended: whoever ended it passed them by, since
-- somebody held their rows. They end now; this waits for nobody.
create or replace function pgflow.void_refused(p_run_ids uuid[], p_step_slugs text[], p_task_indexes int[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_late pgflow.task_key[];
begin
  with named as materialized (
    select t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
    from unnest(p_run_ids, p_step_slugs, p_task_indexes) as i (run_id, step_slug, task_index)
    join pgflow.step_tasks t on t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = i.task_index
    where t.status in ('queued', 'started')
  ), late as materialized (
    select n.* from named n
    join pgflow.runs r on r.run_id = n.run_id
    join pgflow.step_states st on st.run_id = n.run_id and st.step_slug = n.step_slug
    where r.status <> 'started' or st.status in ('completed', 'failed', 'skipped')
    for share of r skip locked
  ), held as materialized (
    select l.* from late l
    join pgflow.step_tasks t on t.run_id = l.run_id and t.step_slug = l.step_slug and t.task_index = l.task_index
    where t.status in ('queued', 'started') for no key update of t skip locked
  )
  select array_agg(row(h.*)::pgflow.task_key) into v_late from held h;
  if v_late is not null then
    perform pgflow.void_tasks(v_late);
  end if;
end
$$;

-- Tasks that were changed in this transaction and are still open: those whose run or step has ended meanwhile end with it.
-- Returns the others. Whoever changes open tasks calls this: who ended the run may have passed them by.
create or replace function pgflow.keep_open(p_tasks pgflow.task_key[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return pgflow.keep_live(p_tasks, pgflow.hold_runs(array(select distinct k.run_id from unnest(p_tasks) k), false));
end
$$;

-- The same where the runs are held; p_live are those that are under way.
create or replace function pgflow.keep_live(p_tasks pgflow.task_key[], p_live uuid[]) returns pgflow.task_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_open pgflow.task_key[];
  v_late pgflow.task_key[];
begin
  select array_agg(k) filter (where l.is_open), array_agg(k) filter (where not l.is_open) into v_open, v_late
  from unnest(p_tasks) k cross join lateral (
    select k.run_id = any (p_live) and coalesce((  -- chains store no states while they are under way
      select st.status = 'started' from pgflow.step_states st where st.run_id = k.run_id and st.step_slug = k.step_slug), true) as is_open) l;
  if v_late is not null then
    perform pgflow.void_tasks(v_late);
  end if;
  return v_open;
end
$$;

-- Plans are made while the tables are small, and kept while they grow. So the functions that begin a transaction forbid
-- sequential scans, and a row is looked up by its whole key out of one materialized list, never by parts of it out of two.
-- Where a plan could begin with a table that was small, and walk the list for each of its rows, the look-up is a lateral one.

-- End the open tasks of runs, or of some of their steps; whoever works on one finds its completion refused.
create or replace function pgflow.end_open_tasks(p_run_ids uuid[], p_step_slugs text[], p_error text) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_ended pgflow.task_key[];
begin
  with open as (
    select t.run_id, t.step_slug, t.task_index
    from unnest(p_run_ids, p_step_slugs) as i (run_id, step_slug) cross join lateral (
      select * from pgflow.step_tasks t
      where t.run_id = i.run_id and (i.step_slug is null or t.step_slug = i.step_slug) and t.status in ('queued', 'started')
      for update skip locked) t
  ), ended as (
    update pgflow.step_tasks t
    set status = 'failed', failed_at = clock_timestamp(), error_message = p_error, not_before = null, deferred_until = null
    from open o where t.run_id = o.run_id and t.step_slug = o.step_slug and t.task_index = o.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, t.message_id
  )
  select array_agg(row(e.*)::pgflow.task_key) into v_ended from ended e;
  perform pgflow.archive_messages(v_ended);
end
$$;

-- Fail started runs, each for the failure of one step (null: of none, as when it is cancelled): that step and every
-- other started one fail, open tasks end, active messages are archived.
create or replace function pgflow.fail_runs(
  p_run_ids uuid[], p_step_slugs text[], p_errors text[], p_cancelled boolean default false, p_event_names_error boolean default true
) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_failed pgflow.step_key[];
begin
  with failed as (
    update pgflow.step_states st
    set status = 'failed', failed_at = clock_timestamp(), error_message = i.error
    from unnest(p_run_ids, p_step_slugs, p_errors) as i (run_id, step_slug, error)
    where st.run_id = i.run_id and st.step_slug = i.step_slug and st.status in ('created', 'started')
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(f.*)::pgflow.step_key) into v_failed from failed f;
  perform pgflow.emit_steps('failed', v_failed);
  update pgflow.runs r
  set status = 'failed', failed_at = clock_timestamp(), cancelled_at = case when p_cancelled then clock_timestamp() end
  where r.run_id = any (p_run_ids) and r.status = 'started';
  perform pgflow.emit_runs('failed', p_run_ids, case when p_event_names_error then p_errors end);
  perform pgflow.end_open_tasks(p_run_ids, array_fill(null::text, array[cardinality(p_run_ids)]),
                                case when p_cancelled then 'cancelled' else 'the run failed' end);
  with others as (
    select st.run_id, st.step_slug, i.step_slug as culprit
    from unnest(p_run_ids, p_step_slugs) as i (run_id, step_slug) cross join lateral (
      select * from pgflow.step_states st where st.run_id = i.run_id and st.status = 'started' for update skip locked) st
  )
  update pgflow.step_states st
  set status = 'failed', failed_at = clock_timestamp(),
      error_message = case when p_cancelled then 'cancelled' else format('the run failed in step %s', o.culprit) end
  from others o where st.run_id = o.run_id and st.step_slug = o.step_slug;
  perform pgflow.notify_runs(p_run_ids);
end
$$;

-- Skip steps with everything downstream of them, each step once however many paths lead to it; returns all that were
-- skipped by this. Their runs' counts are the caller's to lower.
create or replace function pgflow.skip_cascade(p_steps pgflow.step_key[], p_reason text, p_errors text[] default null)
returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_skipped pgflow.step_key[];
begin
  with recursive downstream as (
    select k.flow_slug, k.run_id, k.step_slug from unnest(p_steps) k
    union
    select d.flow_slug, u.run_id, d.step_slug
    from downstream u join pgflow.deps d on d.flow_slug = u.flow_slug and d.dep_slug = u.step_slug
  ), causes as (
    select k.run_id, k.step_slug, e.error from unnest(p_steps) with ordinality as k (flow_slug, run_id, step_slug, n)
    left join unnest(p_errors) with ordinality as e (error, n) on e.n = k.n
  ), skipped as (
    update pgflow.step_states st
    set status = 'skipped', skipped_at = clock_timestamp(), remaining_tasks = null,
        skip_reason = case when c.run_id is not null then p_reason else 'dependency_skipped' end,
        error_message = coalesce(c.error, st.error_message)
    from downstream u left join causes c on c.run_id = u.run_id and c.step_slug = u.step_slug
    where st.run_id = u.run_id and st.step_slug = u.step_slug and st.status in ('created', 'started')
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(s.*)::pgflow.step_key) into v_skipped from skipped s;
  perform pgflow.end_skipped(v_skipped);
  return v_skipped;
end
$$;

-- Skip steps alone: their children go on without them. Returns those that were skipped by this.
create or replace function pgflow.skip_steps(p_steps pgflow.step_key[], p_reason text, p_errors text[] default null)
returns pgflow.step_key[]
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_skipped pgflow.step_key[];
begin
  with skipped as (
    update pgflow.step_states st
    set status = 'skipped', skipped_at = clock_timestamp(), remaining_tasks = null, skip_reason = p_reason,
        error_message = coalesce(e.error, st.error_message)
    from unnest(p_steps) with ordinality as k (flow_slug, run_id, step_slug, n)
    left join unnest(p_errors) with ordinality as e (error, n) on e.n = k.n
    where st.run_id = k.run_id and st.step_slug = k.step_slug and st.status in ('created', 'started')
    returning st.flow_slug, st.run_id, st.step_slug
  )
  select array_agg(row(s.*)::pgflow.step_key) into v_skipped from skipped s;
  perform pgflow.end_skipped(v_skipped);
  return v_skipped;
end
$$;

create or replace function pgflow.end_skipped(p_steps pgflow.step_key[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  if p_steps is not null then
    perform pgflow.end_open_tasks(array_agg(k.run_id), array_agg(k.step_slug), 'the step was skipped') from unnest(p_steps) k;
    perform pgflow.emit_steps('skipped', p_steps);
  end if;
end
$$;
