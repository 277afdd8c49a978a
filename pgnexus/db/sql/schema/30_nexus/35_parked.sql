-- Requests over a limit, or over their agent's share: they wait here, holding neither a worker nor a place in a queue.

-- One row a request whose task is queued with not_before = 'infinity'. Whoever changes a row holds its task's lock
-- first, as everybody who ends a task does. since is when its run was started, so that a request that is parked once
-- more keeps its place.
create table nexus.parked (
  run_id    uuid primary key,
  scope     text collate "C" not null,  -- what it waits for: a limit's scope, 'share', or 'flight:' and a key
  lane      smallint not null,          -- 0 interactive, 1 standard, 2 batch
  agent_id  text collate "C" not null,  -- '': it names none
  since     timestamptz not null,
  step_slug text not null,
  parked_at timestamptz not null default now(),
  deadline  timestamptz,
  constraint lane_is_valid check (lane between 0 and 2)
);
-- Found by jumps from agent to agent, and from scope to scope: nobody reads past those whose turn it is not.
create index parked_by_turn on nexus.parked (scope, lane, agent_id, since, run_id);
create index parked_by_deadline on nexus.parked (deadline) where deadline is not null;
create index parked_flights on nexus.parked (parked_at) where scope >= 'flight:' and scope < 'flight;';

-- Put claimed tasks back until their turn comes. An attempt that called a provider counts, for the books name the calls
-- by it; any other does not. Returns those that were parked; the others had been taken from this worker.
create function nexus.park(
  p_worker_id uuid, p_runs uuid[], p_steps text[], p_attempts int[], p_scopes text[], p_priorities text[], p_agents text[],
  p_deadlines text[], p_counts boolean[]
) returns setof uuid
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_done uuid[];
  v_scope text;
begin
  for v_scope in
    select distinct s.scope from unnest(p_scopes) as s (scope)
    where s.scope not like 'flight:%' and (select true from nexus.parked p where p.scope = s.scope limit 1) is null
  loop
    perform pg_notify('pgnexus_parked', left(v_scope, 1000));  -- the first of a line tells the others of it
  end loop;
  with named as materialized (
    select i.* from unnest(p_runs, p_steps, p_attempts, p_counts) as i (run_id, step_slug, attempt, counts)
    cross join lateral (
      select from pgflow.runs r where r.run_id = i.run_id and r.status = 'started' limit 1
    ) as live
    order by i.run_id
  ), back as (
    update pgflow.step_tasks t
    set status = 'queued', started_at = null, queued_at = now(), not_before = 'infinity',
        attempts_count = t.attempts_count - case when i.counts then 0 else 1 end
    from named i
    where t.run_id = i.run_id and t.step_slug = i.step_slug and t.task_index = 0
      and case t.status when 'started' then t.attempts_count = i.attempt and t.last_worker_id = p_worker_id end
    returning t.run_id
  )
  select array_agg(b.run_id) into v_done from back b;
  insert into nexus.parked (run_id, scope, lane, agent_id, since, step_slug, deadline)
  select i.run_id, i.scope, case i.priority when 'interactive' then 0 when 'batch' then 2 else 1 end,
         coalesce(left(i.agent, 200), ''), r.started_at, i.step_slug, nexus.try_timestamptz(i.deadline)
  from unnest(p_runs, p_scopes, p_priorities, p_agents, p_steps, p_deadlines)
    as i (run_id, scope, priority, agent, step_slug, deadline)
  cross join lateral (select r.started_at from pgflow.runs r where r.run_id = i.run_id and r.status = 'started' limit 1) r
  where i.run_id = any (v_done)
  on conflict (run_id) do update  -- left behind by somebody who moved the task by hand
  set scope = excluded.scope, lane = excluded.lane, agent_id = excluded.agent_id, step_slug = excluded.step_slug,
      parked_at = excluded.parked_at, deadline = excluded.deadline;
  perform nexus.unpark_runs(array(
    select p.run_id from nexus.parked p
    where p.run_id = any (v_done) and p.scope like 'flight:%' and not nexus.still_flies(p.scope)));
  return query select unnest(v_done);
end
$$;

-- Whether a flight is under way, and cannot end before this transaction, which parks a follower. One that is ending at
-- this moment, and would not see the follower, counts for ended.
create function nexus.still_flies(p_scope text) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform from nexus.flights f where f.key = decode(substr(p_scope, 8), 'hex') for key share skip locked;
  return found;
end
$$;

-- The next p_limit of a scope's lane: agents take turns, beginning after p_after, each with its oldest.
create function nexus.next_parked(p_scope text, p_lane smallint, p_after text, p_limit int) returns uuid[]
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp as $$
begin
  return (
    with recursive agents as (
      select a.agent_id, a.agent_id as first, 1 as n
      from (select coalesce(
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane and p.agent_id > p_after
         order by p.agent_id limit 1),
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane order by p.agent_id limit 1)
      ) as agent_id) a
      where a.agent_id is not null
      union all
      select b.agent_id, a.first, a.n + 1
      from agents a cross join lateral (select coalesce(
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane and p.agent_id > a.agent_id
         order by p.agent_id limit 1),
        (select p.agent_id from nexus.parked p where p.scope = p_scope and p.lane = p_lane order by p.agent_id limit 1)
      ) as agent_id) b
      where a.n < p_limit and b.agent_id <> a.first
    ), turns as (
      select ceil(p_limit::numeric / nullif(count(*), 0))::int as each from agents
    )
    select array_agg(f.run_id order by f.turn, f.n)
    from (
      select o.run_id, o.turn, a.n
      from agents a cross join turns t cross join lateral (
        select l.run_id, row_number() over (order by l.since, l.run_id) as turn
        from (select p.run_id, p.since from nexus.parked p
              where p.scope = p_scope and p.lane = p_lane and p.agent_id = a.agent_id
              order by p.since, p.run_id limit t.each) l) o
      order by o.turn, a.n limit p_limit
    ) f);
end
$$;

-- Claim parked requests for a worker, and drop what is no longer parked. Those that somebody has locked are ending.
create function nexus.claim_parked(p_worker_id uuid, p_runs uuid[], out runs uuid[], out agents text[])
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_claimed uuid[];
begin
  with held as materialized (
    select t.run_id, t.step_slug, t.task_index
    from nexus.parked p join pgflow.step_tasks t on t.run_id = p.run_id and t.step_slug = p.step_slug and t.task_index = 0
    where p.run_id = any (p_runs) and t.status = 'queued' and t.not_before = 'infinity'
    order by t.run_id for update of t skip locked
  ), claimed as (
    update pgflow.step_tasks t
    set status = 'started', attempts_count = t.attempts_count + 1, started_at = now(), last_worker_id = p_worker_id,
        message_id = null, not_before = null
    from held h where t.run_id = h.run_id and t.step_slug = h.step_slug and t.task_index = h.task_index
    returning t.run_id
  )
  select array_agg(c.run_id) into v_claimed from claimed c;
  with gone as (
    delete from nexus.parked p
    where p.run_id = any (p_runs) and (
      p.run_id = any (v_claimed)
      or not exists (select from pgflow.step_tasks t where t.run_id = p.run_id and t.step_slug = p.step_slug
                       and t.task_index = 0 and t.status = 'queued' and t.not_before = 'infinity'))
    returning p.run_id, p.agent_id
  )
  select array_agg(g.run_id order by i.n), array_agg(g.agent_id order by i.n) into runs, agents
  from unnest(p_runs) with ordinality as i (run_id, n) join gone g on g.run_id = i.run_id
  where g.run_id = any (v_claimed);
end
$$;

-- Take up to p_limit parked requests of a scope, as nexus.take_requests does: interactive ones first, of the others at most
-- p_others; within a lane agents take turns, beginning after p_after, who had the last one. In the order of turns.
create function nexus.take_parked(
  p_worker_id uuid, p_scope text, p_limit int, p_others int default null, p_after text default ''
) returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  v_left int := p_limit;
  v_others int := coalesce(p_others, p_limit);
  v_after text := coalesce(p_after, '');
  v_lane smallint;
  v_next uuid[];
  v_runs uuid[] := '{}';
  v_agents text[] := '{}';
  v_taken record;
begin
  perform pg_advisory_xact_lock(hashtextextended('nexus.take_parked ' || p_scope, 0));  -- two at once would choose the same
  foreach v_lane in array '{0,1,2}'::smallint[] loop
    if v_lane > 0 then
      v_left := least(v_left, v_others);
    end if;
    while v_left > 0 loop  -- an agent that has fewer than its turns leaves them to the others
      v_next := nexus.next_parked(p_scope, v_lane, v_after, v_left);
      exit when v_next is null;
      v_taken := nexus.claim_parked(p_worker_id, v_next);
      exit when v_taken.runs is null;
      v_runs := v_runs || v_taken.runs;
      v_agents := v_agents || v_taken.agents;
      v_after := v_agents[cardinality(v_agents)];
      v_left := v_left - cardinality(v_taken.runs);
      v_others := v_others - case when v_lane = 0 then 0 else cardinality(v_taken.runs) end;
    end loop;
  end loop;
  return query select c.* from nexus.describe_claims(v_runs, v_agents) c;
end
$$;

-- Take up to p_limit parked requests whose deadline has passed, from whatever line, so that somebody answers them.
create function nexus.take_overdue(p_worker_id uuid, p_limit int)
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  return query select d.* from nexus.claim_parked(p_worker_id, array(
    select p.run_id from nexus.parked p where p.deadline <= v_now order by p.deadline limit p_limit)) c
  cross join lateral nexus.describe_claims(c.runs, c.agents) d;
end
$$;

create function nexus.describe_claims(p_runs uuid[], p_agents text[])
returns table (run_id uuid, step_slug text, attempt int, input jsonb, seconds_left double precision, agent_id text)
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select r.run_id, t.step_slug, t.attempts_count, r.input,
         extract(epoch from nexus.try_timestamptz(r.input ->> 'deadline') - clock_timestamp())::double precision, i.agent
  from unnest(p_runs, p_agents) with ordinality as i (run_id, agent, n)
  join pgflow.runs r on r.run_id = i.run_id
  join pgflow.step_tasks t on t.run_id = i.run_id and t.status = 'started'
  order by i.n
$$;

-- The scopes in which requests are parked, beginning after p_after, but no flights: their ends send them on.
create function nexus.parked_scopes(p_after text, p_limit int) returns setof text
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off set enable_bitmapscan = off as $$
declare
  v_scope text collate "C" := coalesce(p_after, '');
  v_found int := 0;
begin
  while v_found < p_limit loop
    select p.scope into v_scope from nexus.parked p where p.scope > v_scope order by p.scope limit 1;
    exit when v_scope is null;
    if v_scope like 'flight:%' then
      v_scope := 'flight;';  -- next to all of them
      continue;
    end if;
    v_found := v_found + 1;
    return next v_scope;
  end loop;
end
$$;

-- Parked requests back to their queue, now; returns how many.
create function nexus.unpark_runs(p_runs uuid[]) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_tasks pgflow.task_key[];
begin
  with held as materialized (
    select t.run_id, t.step_slug, t.task_index
    from nexus.parked p join pgflow.step_tasks t on t.run_id = p.run_id and t.step_slug = p.step_slug and t.task_index = 0
    where p.run_id = any (p_runs) and t.status = 'queued' and t.not_before = 'infinity'
    order by t.run_id for update of t skip locked
  ), back as (
    update pgflow.step_tasks t set not_before = null, queued_at = now()
    from held h where t.run_id = h.run_id and t.step_slug = h.step_slug and t.task_index = h.task_index
    returning t.flow_slug, t.run_id, t.step_slug, t.task_index, null::bigint
  )
  select array_agg(row(b.*)::pgflow.task_key) into v_tasks from back b;
  if v_tasks is null then
    return 0;
  end if;
  delete from nexus.parked p where p.run_id in (select k.run_id from unnest(v_tasks) k);
  perform pgflow.send_queued(v_tasks);
  perform pg_notify('pgnexus_requests', '');
  return cardinality(v_tasks);
end
$$;

-- All of a scope back to their queue: what they waited for is there, or is gone.
create function nexus.unpark(p_scope text) returns int
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.unpark_runs(array(select p.run_id from nexus.parked p where p.scope = p_scope))
$$;

-- Those that have waited for a flight longer than p_age: whoever should have ended it may have died.
create function nexus.unpark_stranded(p_age interval, p_limit int) returns int
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.unpark_runs(array(
    select p.run_id from nexus.parked p
    where p.scope >= 'flight:' and p.scope < 'flight;' and p.parked_at < now() - p_age
    order by p.parked_at limit p_limit))
$$;
