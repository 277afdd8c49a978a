-- Savings: answers given before, and requests of the same words that are under way. Both are asked for, by the request
-- or by its route, and both are known by a key that holds everything that matters, the agent included where it does.

-- keep_until null: only for requests that were there while it was made.
create table nexus.answers (
  key        bytea primary key,
  answer     jsonb not null,
  made_at    timestamptz not null default clock_timestamp(),
  keep_until timestamptz,
  gone_at    timestamptz not null
);
create index answers_by_end on nexus.answers (gone_at);

-- Who is asking for all: the leader of a single flight. It leads until its run ends, whatever worker it is on.
create table nexus.flights (
  key        bytea primary key,
  request_id uuid not null unique,
  begun_at   timestamptz not null default clock_timestamp()
);
create index flights_by_age on nexus.flights (begun_at);

create function nexus.flight_scope(p_key bytea) returns text
language sql immutable parallel safe as $$
  select 'flight:' || encode(p_key, 'hex')
$$;

-- The flight that a request leads, if any, is over: those who follow may be taken up.
create function nexus.end_flight(p_request_id uuid) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_keys bytea[];
begin
  with ended as (delete from nexus.flights f where f.request_id = p_request_id returning f.key)
  select array_agg(ended.key) into v_keys from ended;
  perform nexus.call_followers(v_keys);
end
$$;

-- What there is for a request: an answer (one that was made before the request was taken up is 'cached', and given where p_kept
-- asks for it; else 'shared'), somebody who is asking for it already ('follow'), or nothing: then it leads the flight that
-- p_flight asks for ('lead') or not ('none'). Who led, and is given an answer that another one made, leads no more. A leader
-- whose run has ended in a way that told nobody is followed by nobody.
create function nexus.look_up(p_request_id uuid, p_key bytea, p_kept boolean, p_flight boolean)
returns table (how text, answer jsonb)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_how    text;
  v_answer jsonb;
  v_leader uuid;
begin
  how := 'none';
  for v_look in 1 .. 2 loop
    select case when r.started_at < a.made_at then 'shared' else 'cached' end, a.answer into v_how, v_answer
    from nexus.answers a join pgflow.runs r on r.run_id = p_request_id
    where a.key = p_key and (p_kept and a.keep_until > clock_timestamp() or r.started_at < a.made_at);
    if found then
      how := v_how;
      answer := v_answer;
      if p_flight then
        perform nexus.end_flight(p_request_id);
      end if;
      exit;
    end if;
    exit when how = 'lead' or not p_flight;
    -- locked: whatever ends it meanwhile ends its flight after this; a worker that was taken for dead leads nobody
    perform from pgflow.runs r where r.run_id = p_request_id and r.status = 'started' for share;
    exit when not found;
    insert into nexus.flights as f (key, request_id) values (p_key, p_request_id)
    on conflict (key) do update  -- also to read it, whoever wrote it and when
    set request_id = case when exists (select from pgflow.runs r where r.run_id = f.request_id and r.status = 'started')
                          then f.request_id else excluded.request_id end
    returning f.request_id into v_leader;
    how := case when v_leader = p_request_id then 'lead' else 'follow' end;
    exit when how = 'follow';
  end loop;  -- who leads looks again: the answer may have come, and its flight gone, between the two looks
  return next;
end
$$;

-- In T3, for items with a `saving` {key, ttl, answer}: keep the answer, for ttl seconds or for those who follow only, and end the flight.
-- Without an answer (the leader failed) the first of the followers to be taken up leads on.
create function nexus.save_answers(p_items jsonb[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_keys bytea[];
begin
  insert into nexus.answers as a (key, answer, keep_until, gone_at)
  select distinct on (s.key) s.key, s.answer, clock_timestamp() + make_interval(secs => s.ttl),
         clock_timestamp() + make_interval(secs => greatest(s.ttl, 600))
  from (
    select decode(i.item #>> '{saving,key}', 'hex') as key, i.item #> '{saving,answer}' as answer,
           least((i.item #>> '{saving,ttl}')::double precision, 3e9) as ttl  -- a century: the time it ends can be told
    from unnest(p_items) as i (item)
  ) s
  where s.answer is not null
  order by s.key
  on conflict (key) do update
    set answer = excluded.answer, made_at = excluded.made_at, keep_until = excluded.keep_until, gone_at = excluded.gone_at;
  with ended as (
    delete from nexus.flights f using (
      select g.key from nexus.flights g
      where g.request_id in (select (i.item ->> 'run_id')::uuid from unnest(p_items) as i (item))
      order by g.key for update) e
    where f.key = e.key returning f.key
  )
  select array_agg(ended.key) into v_keys from ended;
  perform nexus.call_followers(v_keys);
end
$$;

-- Those who follow may be taken up.
create function nexus.call_followers(p_keys bytea[]) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  select nexus.unpark(nexus.flight_scope(k.key)) from unnest(p_keys) as k (key)
$$;

-- A leader whose run ends in any other way than by T3 (cancelled, its last worker lost) hands over.
create function nexus.hand_over() returns trigger
language plpgsql security definer set search_path = pg_catalog, nexus, pg_temp as $$
begin
  perform nexus.end_flight(new.run_id);
  return null;
end
$$;

create trigger hand_over
  after update of status on pgflow.runs for each row
  when (new.status = 'failed' and old.status <> 'failed' and new.flow_slug = 'llm_request_workflow')
  execute function nexus.hand_over();

-- Take away answers that nobody will be given any more, and flights whose leader is gone; returns how many answers.
create function nexus.prune_answers(p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_now timestamptz := clock_timestamp();  -- called in the query, it would keep the index from being searched by it
  v_count int;
begin
  delete from nexus.answers a where a.key in (
    select b.key from nexus.answers b where b.gone_at < v_now order by b.gone_at limit p_limit for update skip locked);
  get diagnostics v_count = row_count;
  delete from nexus.flights f
  where f.begun_at < v_now - interval '1 hour'
    and not exists (select from pgflow.runs r where r.run_id = f.request_id and r.status = 'started');
  return v_count;
end
$$;
