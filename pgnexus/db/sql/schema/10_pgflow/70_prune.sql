-- Keeping the tables small.

-- Delete what ended longer ago than the interval: workers, runs with all that is below them, and their messages and
-- archive rows. Runs of LLMRequestWorkflow, too: their outcome is in the books of both sides.
create or replace function pgflow.prune_data_older_than(retention_interval interval) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_before timestamptz := now() - retention_interval;
  v_queue text;
begin
  for v_queue in select distinct pgflow.queue_of(f.flow_slug) from pgflow.flows f loop
    continue when not pgflow.may_empty(v_queue);
    execute format(
      'delete from pgmq.%I a where a.archived_at < $1', pgmq.format_table_name(v_queue, 'a')) using v_before;
    execute format(
      'delete from pgmq.%I q using pgflow.runs r
       where r.run_id = pgflow.message_run_id(q.message) and coalesce(r.completed_at, r.failed_at) < $1',
      pgmq.format_table_name(v_queue, 'q')) using v_before;
  end loop;
  with old as (
    delete from pgflow.runs r where r.status in ('completed', 'failed') and coalesce(r.completed_at, r.failed_at) < v_before
    returning r.run_id
  ), states as (
    delete from pgflow.step_states st using old where st.run_id = old.run_id
  )
  delete from pgflow.step_tasks t using old where t.run_id = old.run_id;
  delete from pgflow.workers w where coalesce(w.stopped_at, w.last_heartbeat_at) < v_before;
end
$$;
