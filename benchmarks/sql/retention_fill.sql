-- Results of requests of %(ages)s days ago, 1 kB in and out, and half as many runs of requests that ended two days ago.
with old as (
  insert into pgnexus.job_results (request_id, status, agent_id, task_type, complexity, priority, input, output, enqueued_at,
                                   deadline, finished_at)
  select (left(pgnexus.uuid_floor(t.at)::text, 19) || right(gen_random_uuid()::text, 17))::uuid, 'success', 'agent', 'chat',
         'medium', 'standard', jsonb_build_object('messages', jsonb_build_array(jsonb_build_object('role', 'user', 'content',
           substr(%(text)s::text, 1 + (i * 7 %% (length(%(text)s::text) - 1000))::int, 1000)))),
         jsonb_build_object('response', substr(%(text)s::text, 1 + (i * 11 %% (length(%(text)s::text) - 1000))::int, 760)),
         t.at, t.at + interval '1 hour', t.at + interval '1 s'
  from generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1) as i
  cross join lateral (
    select now() - (%(ages)s::int[])[1 + i %% cardinality(%(ages)s::int[])] * interval '1 day' + i * interval '1 ms' as at) as t
  returning request_id
), runs as (
  insert into pgflow.runs (run_id, flow_slug, input, status, output, started_at, completed_at)
  select (left(pgnexus.uuid_floor(t.at)::text, 19) || right(gen_random_uuid()::text, 17))::uuid, 'llm_request_workflow',
         jsonb_build_object('messages', substr(%(text)s::text, 1, 1000)), 'completed', '{}', t.at, t.at
  from generate_series(%(first)s::bigint, %(first)s::bigint + %(count)s - 1, 2) as i
  cross join lateral (select now() - interval '2 days' + i * interval '1 ms' as at) as t
  returning run_id
), states as (
  insert into pgflow.step_states (run_id, flow_slug, step_slug, status, remaining_tasks, completed_at)
  select r.run_id, 'llm_request_workflow', s.step_slug, 'completed', 0, now()
  from runs r cross join pgflow.steps s where s.flow_slug = 'llm_request_workflow'
)
insert into pgflow.step_tasks (run_id, flow_slug, step_slug, status, completed_at)
select r.run_id, 'llm_request_workflow', 'validate', 'completed', now() from runs r
