-- The caller side's tables.

create schema pgnexus;

-- A UUIDv7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds before the random bits of a version 4.
create function pgnexus.uuidv7() returns uuid
language sql volatile parallel safe as $$
  select (lpad(to_hex(floor(extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
          || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid
$$;

-- The smallest UUIDv7 of a moment: the lower bound of a partition, or of a search by time.
create function pgnexus.uuid_floor(moment timestamptz) returns uuid
language sql immutable parallel safe as $$
  select (lpad(to_hex(floor(extract(epoch from moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- One row a request, from the moment it is accepted. The first terminal state wins.
create table pgnexus.job_results (
  -- what never changes comes first: then the WAL record of the update that ends a request need not repeat it
  request_id        uuid not null,
  input             jsonb,
  workflow          text not null default 'LLMRequestWorkflow',
  instance_id       uuid,
  job_id            text,
  agent_id          text,
  task_type         text,
  complexity        text,
  priority          text,
  retry_of          uuid,
  enqueued_at       timestamptz not null default clock_timestamp(),
  deadline          timestamptz,
  status            text not null,
  model             text,
  provider          text,
  output            jsonb,
  error             jsonb,
  prompt_tokens     bigint,
  completion_tokens bigint,
  total_tokens      bigint,
  cached_tokens     bigint,
  cost              numeric,
  duration_ms       bigint,
  attempts          int not null default 0,
  finished_at       timestamptz,
  reasoning_tokens  bigint,
  cache_write_tokens bigint,
  primary key (request_id),
  constraint status_is_valid
    check (status in ('scheduled', 'enqueued', 'success', 'failed', 'timeout', 'cancelled')),
  constraint finished_when_terminal check ((status in ('scheduled', 'enqueued')) = (finished_at is null)),
  constraint error_when_not_successful
    check ((error is not null) = (status in ('failed', 'timeout', 'cancelled'))),
  constraint amounts_are_nonnegative check (
    prompt_tokens >= 0 and completion_tokens >= 0 and total_tokens >= 0 and cached_tokens >= 0
    and cost >= 0 and duration_ms >= 0 and attempts >= 0),
  constraint more_amounts_are_nonnegative check (reasoning_tokens >= 0 and cache_write_tokens >= 0)
) partition by range (request_id);

-- No index names the status, so that ending a request changes no index.
create index job_results_by_deadline on pgnexus.job_results (deadline);
create index job_results_by_agent on pgnexus.job_results (agent_id, request_id) where agent_id is not null;

-- Ids of other versions than 7, and whatever no month was made for.
create table pgnexus.job_results_default partition of pgnexus.job_results default with (fillfactor = 50);

create table pgnexus.idempotency_keys (
  key        text primary key,
  request_id uuid not null,
  body_hash  bytea not null,
  expires_at timestamptz not null
);
create index idempotency_keys_by_expiry on pgnexus.idempotency_keys (expires_at);

-- Requests that may not run yet: queues hold only what may run now.
create table pgnexus.scheduled_requests (
  request_id uuid primary key,
  due_at     timestamptz not null,
  queue      text not null,
  message    jsonb not null
);
create index scheduled_requests_by_due_time on pgnexus.scheduled_requests (due_at);

-- Requests of steps that ended before them, to be cancelled.
create table pgnexus.abandoned_requests (
  request_id   uuid primary key,
  abandoned_at timestamptz not null default clock_timestamp()
);

-- Until when overdue requests have been looked for; one row.
create table pgnexus.sweeps (
  only_row boolean primary key default true check (only_row),
  swept_to timestamptz not null default '-infinity'
);
insert into pgnexus.sweeps default values;

-- What this installation is called, so that a connection into another one is noticed; one row.
create table pgnexus.installation (
  only_row boolean primary key default true check (only_row),
  id       uuid not null default gen_random_uuid()
);
insert into pgnexus.installation default values;

create function pgnexus.home() returns text
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select current_database() || ' ' || i.id from pgnexus.installation i
$$;
