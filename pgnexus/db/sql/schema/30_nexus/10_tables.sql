-- The nexus side's tables.

create schema nexus;

-- The books: one row a provider call. attempt counts how often the request was taken up, call the provider calls
-- of that time; the key keeps a call from being booked twice when a commit was cut off half-way. Cached and cache-write
-- tokens are among the prompt's, those of reasoning among the completion's. estimated: tokens and cost are what was reserved.
create table nexus.attempts (
  request_id        uuid not null,
  attempt           int not null,
  call              int not null,
  instance_id       uuid not null,
  provider          text not null,
  model             text not null,
  complexity        text,
  task_type         text,
  agent_id          text,
  outcome           text not null,
  error             text,
  started_at        timestamptz not null,
  duration_ms       int not null,
  prompt_tokens     bigint not null default 0,
  completion_tokens bigint not null default 0,
  cached_tokens     bigint not null default 0,
  cost              numeric,
  cache_write_tokens bigint not null default 0,
  reasoning_tokens  bigint not null default 0,
  estimated         boolean not null default false,
  primary key (request_id, attempt, call, instance_id),
  constraint amounts_are_nonnegative
    check (duration_ms >= 0 and prompt_tokens >= 0 and completion_tokens >= 0 and cached_tokens >= 0 and cost >= 0),
  constraint more_amounts_are_nonnegative check (cache_write_tokens >= 0 and reasoning_tokens >= 0)
);
-- rows come in the order of time, so a BRIN index finds them and costs a write next to nothing
create index attempts_by_time on nexus.attempts using brin (started_at);

-- Requests whose books were written to after, or while, somebody else ended them; see nexus.amend_results. No key: whoever
-- writes here holds locks, and shall wait for nobody.
create table nexus.late_calls (
  request_id uuid not null,
  noted_at   timestamptz not null default clock_timestamp()
);

-- Tokens, cost and latency of the calls, by hour and by all that one asks for.
create view nexus.metrics as
  select date_trunc('hour', started_at) as hour, provider, model, complexity, task_type, agent_id, outcome,
         count(*) as calls, sum(prompt_tokens) as prompt_tokens, sum(completion_tokens) as completion_tokens,
         sum(cached_tokens) as cached_tokens, sum(cost) as cost,
         count(*) filter (where cost is null and (outcome = 'success' or prompt_tokens + completion_tokens > 0))
           as calls_of_unknown_cost,
         percentile_cont(0.5) within group (order by duration_ms) as p50_ms,
         percentile_cont(0.99) within group (order by duration_ms) as p99_ms,
         sum(cache_write_tokens) as cache_write_tokens, sum(reasoning_tokens) as reasoning_tokens,
         sum(cost) filter (where estimated) as estimated_cost
  from nexus.attempts
  group by 1, 2, 3, 4, 5, 6, 7;

-- Requests that were cancelled before a worker took them up.
create table nexus.cancellations (
  request_id   uuid primary key,
  cancelled_at timestamptz not null default now()
);

-- What each instance can serve, told with its signs of life; callers ask through nexus_api.available_models.
create table nexus.models (
  instance_id uuid not null,
  provider    text not null,
  model       text not null,
  usable      boolean not null,
  reason      text,
  primary key (instance_id, provider, model)
);
