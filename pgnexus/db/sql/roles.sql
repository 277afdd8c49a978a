-- The two roles of the design; idempotent, and run again after every migration where the roles exist.
-- They cannot log in: grant them to the users that do (`grant pgnexus_caller to app`).

do $$
begin
  if not exists (select from pg_roles where rolname = 'pgnexus_caller') then
    create role pgnexus_caller nologin;
  end if;
  if not exists (select from pg_roles where rolname = 'pgnexus_nexus') then
    create role pgnexus_nexus nologin;
  end if;
exception when duplicate_object or unique_violation then
  null;  -- another process made them this moment
end
$$;

-- the caller side: its own schema, requests in, results out
grant usage on schema pgnexus, pgflow, pgmq, nexus_api to pgnexus_caller;
grant select, insert, update, delete on all tables in schema pgnexus to pgnexus_caller;
revoke insert, update, delete on pgnexus.schema_migrations from pgnexus_caller;
grant execute on all functions in schema pgnexus to pgnexus_caller;
-- whoever sends may see the number of what it sent, and no message
grant insert, select (msg_id) on pgmq.q_ai_requests_interactive, pgmq.q_ai_requests, pgmq.q_ai_requests_batch
  to pgnexus_caller;
grant select, insert, update, delete on pgmq.q_ai_results, pgmq.a_ai_results to pgnexus_caller;

-- the nexus side: its own schema, requests out, results in
grant usage on schema nexus, pgflow, pgmq, nexus_api to pgnexus_nexus;
grant select, insert, update, delete on all tables in schema nexus to pgnexus_nexus;
grant execute on all functions in schema nexus to pgnexus_nexus;
grant select, insert, update, delete on pgmq.q_ai_requests_interactive, pgmq.a_ai_requests_interactive,
  pgmq.q_ai_requests, pgmq.a_ai_requests, pgmq.q_ai_requests_batch, pgmq.a_ai_requests_batch to pgnexus_nexus;
grant insert, select (msg_id) on pgmq.q_ai_results to pgnexus_nexus;

-- what both use: the engine and its flows' queues, the queues' catalogue, what crosses
select pgflow.create_queue(q.name)
from (select distinct pgflow.queue_of(f.flow_slug) as name from pgflow.flows f) q
where exists (select from pgmq.meta m where m.queue_name = q.name)
  -- anybody of either role may write a row of flows, and with it any name of a queue
  and q.name not in ('ai_requests_interactive', 'ai_requests', 'ai_requests_batch', 'ai_results');
grant select, insert, update, delete on all tables in schema pgflow to pgnexus_caller, pgnexus_nexus;
grant execute on all functions in schema pgflow, pgmq, nexus_api to pgnexus_caller, pgnexus_nexus;
grant select on pgmq.meta to pgnexus_caller, pgnexus_nexus;

-- functions are open to everyone by default; these are not for everyone
revoke execute on all functions in schema pgnexus, nexus, nexus_api from public;
