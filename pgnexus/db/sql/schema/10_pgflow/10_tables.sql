-- The workflow engine's tables. Names, columns and constraints follow pgflow's public contract; what is ours
-- beyond it stands at the end of each table.

create schema pgflow;

create function pgflow.is_valid_slug(slug text) returns boolean
language sql immutable parallel safe as $$
  select slug is not null and slug <> 'run' and length(slug) <= 128 and slug ~ '^[a-zA-Z_][a-zA-Z0-9_]*$'
$$;

create table pgflow.flows (
  flow_slug        text primary key,
  opt_max_attempts int not null default 3,
  opt_base_delay   int not null default 1,
  opt_timeout      int not null default 60,
  created_at       timestamptz not null default now(),
  queue_name       text,         -- null: pgflow.queue_name(flow_slug)
  paused_at        timestamptz,  -- since when nobody claims its tasks
  name             text,         -- of which this is a version; null: its slug
  version          int not null default 1,
  definition       jsonb,        -- how its authors describe it, for display; of a built flow: what builds it
  constraint slug_is_valid check (pgflow.is_valid_slug(flow_slug)),
  constraint opt_max_attempts_is_nonnegative check (opt_max_attempts >= 0),
  constraint opt_base_delay_is_nonnegative check (opt_base_delay >= 0),
  constraint opt_timeout_is_positive check (opt_timeout > 0)
);

create table pgflow.steps (
  flow_slug               text not null,
  step_slug               text not null,
  step_type               text not null default 'single',
  step_index              int not null default 0,
  deps_count              int not null default 0,
  opt_max_attempts        int,
  opt_base_delay          int,
  opt_timeout             int,
  opt_start_delay         int,
  required_input_pattern  jsonb,
  forbidden_input_pattern jsonb,
  when_unmet              text not null default 'skip',
  when_exhausted          text not null default 'fail',
  created_at              timestamptz not null default now(),
  handler                 text,  -- which action runs it, in a flow built at run time
  primary key (flow_slug, step_slug),
  constraint steps_flow_slug_fkey foreign key (flow_slug) references pgflow.flows (flow_slug),
  constraint steps_flow_slug_step_index_key unique (flow_slug, step_index),
  constraint steps_step_slug_check check (pgflow.is_valid_slug(step_slug)),
  constraint steps_step_type_check check (step_type in ('single', 'map')),
  constraint deps_count_is_nonnegative check (deps_count >= 0),
  constraint opt_max_attempts_is_nonnegative check (opt_max_attempts is null or opt_max_attempts >= 0),
  constraint opt_base_delay_is_nonnegative check (opt_base_delay is null or opt_base_delay >= 0),
  constraint opt_timeout_is_positive check (opt_timeout is null or opt_timeout > 0),
  constraint opt_start_delay_is_nonnegative check (opt_start_delay is null or opt_start_delay >= 0),
  constraint required_input_pattern_is_object
    check (required_input_pattern is null or jsonb_typeof(required_input_pattern) = 'object'),
  constraint forbidden_input_pattern_is_object
    check (forbidden_input_pattern is null or jsonb_typeof(forbidden_input_pattern) = 'object'),
  constraint when_unmet_is_valid check (when_unmet in ('fail', 'skip', 'skip-cascade')),
  constraint when_exhausted_is_valid check (when_exhausted in ('fail', 'skip', 'skip-cascade'))
);

create table pgflow.deps (
  flow_slug  text not null,
  dep_slug   text not null,
  step_slug  text not null,
  created_at timestamptz not null default now(),
  primary key (flow_slug, dep_slug, step_slug),
  constraint deps_flow_slug_dep_slug_fkey
    foreign key (flow_slug, dep_slug) references pgflow.steps (flow_slug, step_slug),
  constraint deps_flow_slug_step_slug_fkey
    foreign key (flow_slug, step_slug) references pgflow.steps (flow_slug, step_slug),
  constraint deps_check check (dep_slug <> step_slug)
);
create index deps_by_step on pgflow.deps (flow_slug, step_slug);

-- No foreign keys below this line: what happens to a run is written by the functions beside this file only,
-- and each key would cost every request a look-up and a row lock.
--
-- Rows that are updated soon after they were written leave room on their page for it (fillfactor) and have what
-- never changes first: then an update touches no index, and its WAL record holds only the changed end of the row.
create table pgflow.runs (
  run_id          uuid primary key default gen_random_uuid(),
  flow_slug       text not null,
  input           jsonb not null,
  started_at      timestamptz not null default now(),
  status          text not null default 'started',
  output          jsonb,
  remaining_steps int not null default 0,
  completed_at    timestamptz,
  failed_at       timestamptz,
  cancelled_at    timestamptz,
  constraint status_is_valid check (status in ('started', 'completed', 'failed')),
  constraint remaining_steps_is_nonnegative check (remaining_steps >= 0),
  constraint completed_at_when_completed check ((status = 'completed') = (completed_at is not null)),
  constraint failed_at_when_failed check ((status = 'failed') = (failed_at is not null)),
  constraint cancelled_is_failed check (cancelled_at is null or status = 'failed')
) with (fillfactor = 50);
-- Runs of LLMRequestWorkflow are found by their requests, and spare themselves the index.
create index runs_by_time on pgflow.runs (started_at, flow_slug) where flow_slug <> 'llm_request_workflow';

create table pgflow.step_states (
  run_id          uuid not null,
  flow_slug       text not null,
  step_slug       text not null,
  created_at      timestamptz not null default now(),
  status          text not null default 'created',
  remaining_tasks int,
  initial_tasks   int,
  remaining_deps  int not null default 0,
  output          jsonb,
  error_message   text,
  skip_reason     text,
  started_at      timestamptz,
  completed_at    timestamptz,
  failed_at       timestamptz,
  skipped_at      timestamptz,
  primary key (run_id, step_slug),
  constraint status_is_valid check (status in ('created', 'started', 'completed', 'failed', 'skipped')),
  constraint remaining_tasks_is_nonnegative check (remaining_tasks is null or remaining_tasks >= 0),
  constraint remaining_deps_is_nonnegative check (remaining_deps >= 0),
  constraint output_only_for_completed_or_null check (output is null or status = 'completed'),
  constraint skip_reason_matches_status check ((status = 'skipped') = (skip_reason is not null)),
  constraint at_most_one_terminal_time check (num_nonnulls(completed_at, failed_at, skipped_at) <= 1),
  constraint remaining_tasks_matches_status check (case status
    when 'created' then remaining_tasks is null when 'skipped' then remaining_tasks is null
    when 'completed' then remaining_tasks = 0 else true end)
) with (fillfactor = 40);

-- One row an instance: a process that runs tasks and gives signs of life (see Registry).
create table pgflow.workers (
  worker_id         uuid primary key,
  queue_name        text not null,
  function_name     text not null,
  started_at        timestamptz not null default now(),
  deprecated_at     timestamptz,
  stopped_at        timestamptz,
  last_heartbeat_at timestamptz not null default now(),
  lease             interval  -- how long it is taken for alive after a sign of life, as it says itself
);

create table pgflow.step_tasks (
  run_id                  uuid not null,
  flow_slug               text not null,
  step_slug               text not null,
  task_index              int not null default 0,
  message_id              bigint,
  status                  text not null default 'queued',
  attempts_count          int not null default 0,
  error_message           text,
  output                  jsonb,
  queued_at               timestamptz not null default now(),
  started_at              timestamptz,
  completed_at            timestamptz,
  failed_at               timestamptz,
  last_worker_id          uuid,
  requeued_count          int not null default 0,
  last_requeued_at        timestamptz,
  permanently_stalled_at  timestamptz,
  not_before              timestamptz,
  input                   jsonb,        -- a map task's element; null where the parent's task of the same index has it
  deferred_until          timestamptz,  -- set while the task waits for an answer, holding no worker
  deferral_token          uuid,         -- who has it may end the task
  deferral                jsonb,        -- what it waits for: {kind, ...}
  progress                jsonb,        -- what its handler last told of itself
  primary key (run_id, step_slug, task_index),
  constraint status_is_valid check (status in ('queued', 'started', 'completed', 'failed')),
  constraint attempts_count_is_nonnegative check (attempts_count >= 0),
  constraint waits_only_when_queued check (not_before is null or status = 'queued'),
  constraint deferred_only_when_started check (deferred_until is null or status = 'started' and deferral_token is not null)
) with (fillfactor = 50);
create index step_tasks_by_worker on pgflow.step_tasks (last_worker_id) where status = 'started';
create index step_tasks_by_due_time on pgflow.step_tasks (not_before) where not_before is not null;
create unique index step_tasks_by_token on pgflow.step_tasks (deferral_token) where deferral_token is not null;
create index step_tasks_by_deferral on pgflow.step_tasks (deferred_until) where deferred_until is not null;

-- Functions that a platform may start workers by; kept for clients that know it.
create table pgflow.worker_functions (
  function_name   text primary key,
  enabled         boolean not null default true,
  debounce        interval not null default '6 seconds',
  last_invoked_at timestamptz,
  created_at      timestamptz not null default now(),
  updated_at      timestamptz not null default now()
);

-- A task does not outlive its knowledge of a worker that was deleted. A foreign key would say the same, at the price
-- of a look-up and a row lock for every claim, and of one walk over all tasks for every deleted worker.
create function pgflow.forget_workers() returns trigger
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  update pgflow.step_tasks t set last_worker_id = null from gone g where t.last_worker_id = g.worker_id;
  return null;
end
$$;
create trigger forget_workers after delete on pgflow.workers referencing old table as gone
  for each statement execute function pgflow.forget_workers();

-- A claimed task as start_tasks hands it out.
create type pgflow.step_task_record as (
  flow_slug  text,
  run_id     uuid,
  step_slug  text,
  input      jsonb,
  msg_id     bigint,
  task_index int,
  flow_input jsonb
);

-- The same for batches: attempt is the fence to end the task with, timeout is in seconds. Where outcome is 'refused'
-- the task was not this worker's any more, and only its name is given.
create type pgflow.claimed_task as (
  outcome    text,
  flow_slug  text,
  run_id     uuid,
  step_slug  text,
  task_index int,
  attempt    int,
  input      jsonb,
  flow_input jsonb,
  timeout    double precision
);

-- The names of steps and tasks, as the engine's functions hand them to each other.
create type pgflow.step_key as (flow_slug text, run_id uuid, step_slug text);
create type pgflow.task_key as (flow_slug text, run_id uuid, step_slug text, task_index int, message_id bigint);
