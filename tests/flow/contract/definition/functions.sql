-- Every function of the contract: its parameters by name, and what it returns. They never gain parameters.
create temporary table wanted (function text, parameters text, optional int, result text) on commit drop;
insert into wanted values
  ('_cascade_force_skip_steps', 'run_id uuid, step_slug text, skip_reason text', 0, 'integer'),
  ('_create_flow_from_shape', 'p_flow_slug text, p_shape jsonb', 0, null),
  ('_get_flow_shape', 'p_flow_slug text', 0, 'jsonb'),
  ('_compare_flow_shapes', 'p_local jsonb, p_db jsonb', 0, 'text[]'),
  ('add_step', 'flow_slug text, step_slug text, deps_slugs text[], max_attempts integer, base_delay integer, '
    'timeout integer, start_delay integer, step_type text, required_input_pattern jsonb, '
    'forbidden_input_pattern jsonb, when_unmet text, when_exhausted text', 10, 'pgflow.steps'),
  ('cascade_complete_taskless_steps', 'run_id uuid', 0, 'integer'),
  ('cascade_resolve_conditions', 'run_id uuid', 0, 'boolean'),
  ('complete_task', 'run_id uuid, step_slug text, task_index integer, output jsonb', 0, 'SETOF pgflow.step_tasks'),
  ('create_flow', 'flow_slug text, max_attempts integer, base_delay integer, timeout integer', 3, 'pgflow.flows'),
  ('delete_flow_and_data', 'p_flow_slug text', 0, null),
  ('ensure_flow_compiled', 'flow_slug text, shape jsonb, allow_data_loss boolean', 1, 'jsonb'),
  ('fail_task', 'run_id uuid, step_slug text, task_index integer, error_message text', 0, 'SETOF pgflow.step_tasks'),
  ('get_run_with_states', 'run_id uuid', 0, 'jsonb'),
  ('is_local', '', 0, 'boolean'),
  ('mark_worker_stopped', 'worker_id uuid', 0, null),
  ('maybe_complete_run', 'run_id uuid', 0, null),
  ('prune_data_older_than', 'retention_interval interval', 0, null),
  ('requeue_stalled_tasks', '', 0, 'integer'),
  ('start_flow', 'flow_slug text, input jsonb, run_id uuid', 1, 'SETOF pgflow.runs'),
  ('start_flow_with_states', 'flow_slug text, input jsonb, run_id uuid', 1, 'jsonb'),
  ('start_ready_steps', 'run_id uuid', 0, null),
  ('start_tasks', 'flow_slug text, msg_ids bigint[], worker_id uuid', 0, 'SETOF pgflow.step_task_record');
select check_.rows(
  $$select w.function, count(p.oid), min(pg_get_function_identity_arguments(p.oid)), min(p.pronargdefaults)::int,
      min(pg_get_function_result(p.oid))
    from wanted w left join pg_proc p on p.pronamespace = 'pgflow'::regnamespace and p.proname = w.function
    group by 1 order by w.function collate "C"$$,
  $$select w.function, 1, w.parameters, w.optional, coalesce(w.result, min(pg_get_function_result(p.oid)))
    from wanted w left join pg_proc p on p.pronamespace = 'pgflow'::regnamespace and p.proname = w.function
    group by w.function, w.parameters, w.optional, w.result order by w.function collate "C"$$, 'functions');

-- those whose types the contract leaves open
select check_.rows(
  $$select proname, proargnames[:pronargs] from pg_proc
    where pronamespace = 'pgflow'::regnamespace and proname in ('poll_for_tasks', 'set_vt_batch') order by 1$$,
  $$values ('poll_for_tasks', '{queue_name,vt,qty,max_poll_seconds,poll_interval_ms}'),
    ('set_vt_batch', '{queue_name,msg_ids,vt_offsets}')$$, 'names of parameters');
select check_.is(count(*), 1, 'one calculate_retry_delay') from pg_proc
where pronamespace = 'pgflow'::regnamespace and proname = 'calculate_retry_delay';
