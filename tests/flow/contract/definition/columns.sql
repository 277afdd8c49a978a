-- Tables and columns, with the types that clients read and the defaults.
create temporary table wanted (place int, tab text, col text, type text, nullable boolean) on commit drop;
insert into wanted
select row_number() over (), tab, c.col, c.type, not c.required
from (values
  ('flows', 'flow_slug', 'text', true), ('flows', 'opt_max_attempts', 'integer', true),
  ('flows', 'opt_base_delay', 'integer', true), ('flows', 'opt_timeout', 'integer', true),
  ('flows', 'created_at', 'timestamp with time zone', true),
  ('steps', 'flow_slug', 'text', true), ('steps', 'step_slug', 'text', true), ('steps', 'step_type', 'text', true),
  ('steps', 'step_index', 'integer', true), ('steps', 'deps_count', 'integer', true),
  ('steps', 'opt_max_attempts', 'integer', false), ('steps', 'opt_base_delay', 'integer', false),
  ('steps', 'opt_timeout', 'integer', false), ('steps', 'opt_start_delay', 'integer', false),
  ('steps', 'required_input_pattern', 'jsonb', false), ('steps', 'forbidden_input_pattern', 'jsonb', false),
  ('steps', 'when_unmet', 'text', true), ('steps', 'when_exhausted', 'text', true),
  ('steps', 'created_at', 'timestamp with time zone', true),
  ('deps', 'flow_slug', 'text', true), ('deps', 'dep_slug', 'text', true), ('deps', 'step_slug', 'text', true),
  ('deps', 'created_at', 'timestamp with time zone', true),
  ('runs', 'run_id', 'uuid', true), ('runs', 'flow_slug', 'text', true), ('runs', 'status', 'text', true),
  ('runs', 'input', 'jsonb', true), ('runs', 'output', 'jsonb', false), ('runs', 'remaining_steps', 'integer', true),
  ('runs', 'started_at', 'timestamp with time zone', true), ('runs', 'completed_at', 'timestamp with time zone', false),
  ('runs', 'failed_at', 'timestamp with time zone', false),
  ('step_states', 'run_id', 'uuid', true), ('step_states', 'flow_slug', 'text', true),
  ('step_states', 'step_slug', 'text', true), ('step_states', 'status', 'text', true),
  ('step_states', 'remaining_tasks', 'integer', false), ('step_states', 'initial_tasks', 'integer', false),
  ('step_states', 'remaining_deps', 'integer', true), ('step_states', 'output', 'jsonb', false),
  ('step_states', 'error_message', 'text', false), ('step_states', 'skip_reason', 'text', false),
  ('step_states', 'created_at', 'timestamp with time zone', true),
  ('step_states', 'started_at', 'timestamp with time zone', false),
  ('step_states', 'completed_at', 'timestamp with time zone', false),
  ('step_states', 'failed_at', 'timestamp with time zone', false),
  ('step_states', 'skipped_at', 'timestamp with time zone', false),
  ('step_tasks', 'run_id', 'uuid', true), ('step_tasks', 'flow_slug', 'text', true),
  ('step_tasks', 'step_slug', 'text', true), ('step_tasks', 'task_index', 'integer', true),
  ('step_tasks', 'message_id', 'bigint', false), ('step_tasks', 'status', 'text', true),
  ('step_tasks', 'attempts_count', 'integer', true), ('step_tasks', 'error_message', 'text', false),
  ('step_tasks', 'output', 'jsonb', false), ('step_tasks', 'queued_at', 'timestamp with time zone', true),
  ('step_tasks', 'started_at', 'timestamp with time zone', false),
  ('step_tasks', 'completed_at', 'timestamp with time zone', false),
  ('step_tasks', 'failed_at', 'timestamp with time zone', false), ('step_tasks', 'last_worker_id', 'uuid', false),
  ('step_tasks', 'requeued_count', 'integer', true),
  ('step_tasks', 'last_requeued_at', 'timestamp with time zone', false),
  ('step_tasks', 'permanently_stalled_at', 'timestamp with time zone', false),
  ('workers', 'worker_id', 'uuid', true), ('workers', 'queue_name', 'text', true),
  ('workers', 'function_name', 'text', true), ('workers', 'started_at', 'timestamp with time zone', true),
  ('workers', 'deprecated_at', 'timestamp with time zone', false),
  ('workers', 'stopped_at', 'timestamp with time zone', false),
  ('workers', 'last_heartbeat_at', 'timestamp with time zone', true)) as c (tab, col, type, required);
select check_.rows(
  $$select w.tab, w.col, c.data_type, c.is_nullable = 'YES' from wanted w
    left join information_schema.columns c on c.table_schema = 'pgflow' and c.table_name = w.tab and c.column_name = w.col
    order by w.place$$,
  $$select tab, col, type, nullable from wanted order by place$$, 'columns, types, nullability');
select check_.ok(to_regclass('pgflow.worker_functions') is not null, 'worker_functions exists');

-- a claimed task, in this order
select check_.rows(
  $$select attname, format_type(atttypid, atttypmod) from pg_attribute
    where attrelid = 'pgflow.step_task_record'::regclass and attnum > 0 and not attisdropped order by attnum$$,
  $$values ('flow_slug', 'text'), ('run_id', 'uuid'), ('step_slug', 'text'), ('input', 'jsonb'), ('msg_id', 'bigint'),
    ('task_index', 'integer'), ('flow_input', 'jsonb')$$, 'step_task_record');

-- the keys
select check_.rows(
  $$select c.conrelid::regclass::text, array_agg(a.attname::text order by k.n) from pg_constraint c
    cross join unnest(c.conkey) with ordinality as k (attnum, n)
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.attnum
    where c.contype = 'p' and c.conrelid::regclass::text in ('pgflow.flows', 'pgflow.step_states', 'pgflow.step_tasks')
    group by 1 order by 1$$,
  $$values ('pgflow.flows', '{flow_slug}'), ('pgflow.step_states', '{run_id,step_slug}'),
    ('pgflow.step_tasks', '{run_id,step_slug,task_index}')$$, 'primary keys');

-- the constraints' names, and the tables they stand on
select check_.rows(
  $$select conrelid::regclass::text, conname from pg_constraint
    where conname in ('slug_is_valid', 'steps_step_slug_check', 'steps_step_type_check', 'steps_flow_slug_fkey',
      'steps_flow_slug_step_index_key', 'opt_start_delay_is_nonnegative', 'required_input_pattern_is_object',
      'forbidden_input_pattern_is_object', 'when_unmet_is_valid', 'when_exhausted_is_valid', 'deps_check',
      'deps_flow_slug_dep_slug_fkey', 'output_only_for_completed_or_null')
      and connamespace = 'pgflow'::regnamespace
    order by 1, conname collate "C"$$,
  $$values ('pgflow.deps', 'deps_check'), ('pgflow.deps', 'deps_flow_slug_dep_slug_fkey'),
    ('pgflow.flows', 'slug_is_valid'), ('pgflow.step_states', 'output_only_for_completed_or_null'),
    ('pgflow.steps', 'forbidden_input_pattern_is_object'), ('pgflow.steps', 'opt_start_delay_is_nonnegative'),
    ('pgflow.steps', 'required_input_pattern_is_object'), ('pgflow.steps', 'steps_flow_slug_fkey'),
    ('pgflow.steps', 'steps_flow_slug_step_index_key'), ('pgflow.steps', 'steps_step_slug_check'),
    ('pgflow.steps', 'steps_step_type_check'), ('pgflow.steps', 'when_exhausted_is_valid'),
    ('pgflow.steps', 'when_unmet_is_valid')$$, 'constraints');
