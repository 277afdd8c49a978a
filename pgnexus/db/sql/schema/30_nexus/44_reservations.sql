-- Calls in flight: one row is what one worker had on its way when it stored it. Of the dead they become `unknown` attempts.

-- calls: [[request_id, attempt, call, started_at, provider, model, prompt_tokens, completion_tokens, cost, charges], ...], what is
-- reserved for each. Text as it came, for hardly any of them is ever read.
create table nexus.reservations (
  instance_id uuid not null,
  number      bigint not null,
  reserved_at timestamptz not null default clock_timestamp(),
  calls       json not null,
  primary key (instance_id, number)
);

-- Note calls in flight as one row, drop rows whose calls are in the books, and bury those whose requests others have been
-- given. Said twice, it is done once. Nobody waits for the disk: what a crash of the server loses the worker still knows.
create function nexus.reserve(p_instance uuid, p_number bigint, p_calls json, p_done bigint[], p_lost bigint[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_charges jsonb[];
begin
  perform set_config('synchronous_commit', 'off', true);
  if cardinality(p_lost) > 0 then  -- before any row: who is burying this instance wants all of them
    perform nexus.lock_burial(p_instance, true);
  end if;
  if p_calls is not null then
    insert into nexus.reservations (instance_id, number, calls) values (p_instance, p_number, p_calls)
    on conflict do nothing;
  end if;
  if cardinality(p_done) > 0 then  -- those that somebody is burying are his
    delete from nexus.reservations r using (
      select o.number from nexus.reservations o
      where o.instance_id = p_instance and o.number = any (p_done) for update skip locked) d
    where r.instance_id = p_instance and r.number = d.number;
  end if;
  if cardinality(p_lost) > 0 then
    v_charges := (select b.charges from nexus.book_unknown(p_instance, p_lost) b);
    if v_charges is not null then
      perform nexus.charge(p_instance, v_charges);
    end if;
  end if;
end
$$;

-- The instances that are no more and have left calls in flight, or, with p_all, anything else. (What they have spent they
-- may leave: it counts all the same.)
create function nexus.gone_instances(p_all boolean) returns setof uuid
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp as $$
begin
  return query
  with recursive reserving as (  -- from one to the next, past the many rows of each
    (select r.instance_id from nexus.reservations r order by r.instance_id limit 1)
    union all
    select (select r.instance_id from nexus.reservations r where r.instance_id > n.instance_id order by r.instance_id limit 1)
    from reserving n where n.instance_id is not null
  ), known as (
    select n.instance_id from reserving n where n.instance_id is not null
    union select h.instance_id from nexus.holdings h where p_all
    union select l.instance_id from nexus.configured_limits l where p_all
  )
  select k.instance_id from known k
  where not exists (select from pgflow.workers w where w.worker_id = k.instance_id and w.stopped_at is null)
  order by 1;
end
$$;

-- Make `unknown` attempts of an instance's calls in flight (of all, or of the rows named) that are not in the books, and
-- take their rows away. Returns how many, and what they are to be charged: what was reserved. Who calls it has the lock.
create function nexus.book_unknown(p_instance uuid, p_numbers bigint[], out calls int, out charges jsonb[])
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  with gone as (
    delete from nexus.reservations r
    where r.instance_id = p_instance and (p_numbers is null or r.number = any (p_numbers))
    returning r.calls
  ), reserved as materialized (
    select (c.call ->> 0)::uuid as request_id, (c.call ->> 1)::int as attempt, (c.call ->> 2)::int as call,
           (c.call ->> 3)::timestamptz as started_at, c.call ->> 4 as provider, c.call ->> 5 as model,
           (c.call ->> 6)::bigint as prompt_tokens, (c.call ->> 7)::bigint as completion_tokens,
           (c.call ->> 8)::numeric as cost, (c.call -> 9)::jsonb as charges
    from gone g cross join lateral json_array_elements(g.calls) as c (call)
  ), booked as (
    insert into nexus.attempts (
      request_id, attempt, call, instance_id, provider, model, complexity, task_type, agent_id, outcome, error, started_at,
      duration_ms, prompt_tokens, completion_tokens, cost, estimated)
    select c.request_id, c.attempt, c.call, p_instance, c.provider, c.model, r.input ->> 'complexity',
           r.input ->> 'task_type', r.input ->> 'agent_id', 'unknown', 'its worker was lost', c.started_at,
           least(greatest(extract(epoch from coalesce(w.last_heartbeat_at, c.started_at) - c.started_at) * 1000, 0), 2147483647)::int,
           c.prompt_tokens, c.completion_tokens, c.cost, true
    from reserved c
    left join pgflow.runs r on r.run_id = c.request_id
    left join pgflow.workers w on w.worker_id = p_instance
    order by c.request_id, c.attempt, c.call  -- as nexus.book, so that nobody waits in a circle
    on conflict do nothing
    returning request_id, attempt, call
  ), late as (
    insert into nexus.late_calls (request_id) select distinct b.request_id from booked b
  )
  select (select count(*) from booked), array_agg(e.item || jsonb_build_object('actual', e.item -> 'reserved'))
  into calls, charges
  from booked b
  join reserved c on c.request_id = b.request_id and c.attempt = b.attempt and c.call = b.call
  cross join lateral jsonb_array_elements(c.charges) as e (item);
end
$$;

create function nexus.lock_burial(p_instance uuid, p_wait boolean) returns boolean
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_key bigint := hashtextextended('nexus.bury ' || p_instance, 0);
begin
  if p_wait then
    perform pg_advisory_xact_lock(v_key);
  end if;
  return p_wait or pg_try_advisory_xact_lock(v_key);
end
$$;

-- The books of the instances that are no more, but for what they are charged, which nexus.end_burial pays after all
-- attempts of the transaction are written. With p_wait only of those with calls in flight, and also of those that somebody
-- else is at; without it of all others.
create function nexus.begin_burial(p_wait boolean) returns jsonb[]
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_instance uuid;
  v_gone jsonb[] := '{}';
begin
  for v_instance in select * from nexus.gone_instances(not p_wait) loop
    if nexus.lock_burial(v_instance, p_wait) then
      v_gone := v_gone || (select jsonb_build_object('instance_id', v_instance, 'calls', b.calls, 'charges', to_jsonb(b.charges))
                           from nexus.book_unknown(v_instance, null) b);
    end if;
  end loop;
  return v_gone;
end
$$;

create function nexus.end_burial(p_gone jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_gone jsonb;
  v_instance uuid;
begin
  foreach v_gone in array p_gone loop
    v_instance := v_gone ->> 'instance_id';
    if v_gone -> 'charges' <> 'null' then
      perform nexus.charge(v_instance, array(select jsonb_array_elements(v_gone -> 'charges')));
    end if;
    perform nexus.release_holdings(v_instance);
  end loop;
end
$$;

-- Bring the books of instances that are no more to their end; any number of workers may do so at once. Returns them, and how
-- many calls each had in flight.
create function nexus.bury() returns table (instance_id uuid, calls int)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_gone jsonb[] := nexus.begin_burial(false);
begin
  perform nexus.end_burial(v_gone);
  return query select (g.item ->> 'instance_id')::uuid, (g.item ->> 'calls')::int from unnest(v_gone) as g (item);
end
$$;
