-- Streams: what has come of an answer so far, until it is whole and stored as every other.

-- Who writes a request's chunks: the claim that began to last. A worker that was given up, or froze, is refused.
create table nexus.streams (
  request_id uuid primary key,
  claim      uuid not null,
  attempt    int not null,
  begun_at   timestamptz not null default clock_timestamp()
);
create index streams_by_age on nexus.streams (begun_at);

-- One row a flush of a stream. Numbers count up from 1 without a gap; a row that says discard makes void what was
-- before it, and only at such a row may numbers jump.
create table nexus.chunks (
  request_id uuid not null,
  number     int not null,
  discard    boolean not null default false,
  text       text not null default '',
  reasoning  text not null default '',
  tool_calls jsonb,
  primary key (request_id, number),
  constraint numbers_count_from_one check (number > 0),
  constraint says_something check (discard <> (text <> '' or reasoning <> '' or tool_calls is not null))
);

-- Store one flush of each of many streams, and tell their readers. p_numbers are null for the first flush of a claim,
-- which is numbered here, and begins with discard when another claim had written before. Said again after a commit
-- cut off half-way it stores nothing twice. Returns each claim's next number; those that are missing are refused.
-- Only the first flush of a claim is waited for until it is on disk. What a crash takes away of the later ones is in the
-- stored answer all the same; but were all of a claim's chunks lost, the next one would begin with their numbers again,
-- and a reader that comes back after one of them would take it for what he knows.
create function nexus.store_chunks(
  p_request_ids uuid[], p_claims uuid[], p_attempts int[], p_numbers int[], p_discards boolean[], p_texts text[],
  p_reasonings text[], p_tool_calls jsonb[]
) returns table (claim uuid, next int)
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_held uuid[];
begin
  if array_position(p_numbers, null) is null then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  v_held := array(
    select i.claim from unnest(p_request_ids, p_claims) as i (request_id, claim)
    where i.claim = (select s.claim from nexus.streams s where s.request_id = i.request_id));
  if cardinality(v_held) < cardinality(p_claims) then
    perform nexus.begin_streams(p_request_ids, p_claims, p_attempts, p_numbers, v_held);
  end if;
  return query
    with held as materialized (
      select i.*
      from unnest(p_request_ids, p_claims, p_numbers, p_discards, p_texts, p_reasonings, p_tool_calls)
        as i (request_id, claim, number, discard, text, reasoning, tool_calls)
      where i.claim = (select s.claim from nexus.streams s where s.request_id = i.request_id)
        and not (i.number is null and i.claim = any (v_held))
    ), flush as materialized (
      select h.claim, h.request_id, n.number, n.discard, h.text, h.reasoning, h.tool_calls,
             h.text <> '' or h.reasoning <> '' or h.tool_calls is not null as says
      from held h cross join lateral nexus.place_chunk(h.request_id, h.number, h.discard) as n (number, discard)
    ), marked as (
      insert into nexus.chunks (request_id, number, discard)
      select f.request_id, f.number, true from flush f where f.discard
      on conflict do nothing
    ), said as (
      insert into nexus.chunks (request_id, number, text, reasoning, tool_calls)
      select f.request_id, f.number + f.discard::int, f.text, f.reasoning, f.tool_calls from flush f where f.says
      on conflict do nothing
    )
    select f.claim, f.number + f.discard::int + f.says::int from flush f
    union all
    select i.claim, (select max(c.number) + 1 from nexus.chunks c where c.request_id = i.request_id)
    from unnest(p_request_ids, p_claims, p_numbers) as i (request_id, claim, number)
    where i.number is null and i.claim = any (v_held);
  perform nexus.notify_chunks(p_request_ids);
end
$$;

-- Let claims have their streams: the first flush of one takes it from every claim that is not of a later attempt; a
-- later flush, whose first one was lost in a crash, only from those of earlier attempts.
create function nexus.begin_streams(
  p_request_ids uuid[], p_claims uuid[], p_attempts int[], p_numbers int[], p_held uuid[]
) returns void
language sql set search_path = pg_catalog, nexus, pg_temp as $$
  insert into nexus.streams as s (request_id, claim, attempt)
  select i.request_id, i.claim, i.attempt
  from unnest(p_request_ids, p_claims, p_attempts, p_numbers) as i (request_id, claim, attempt, number)
  where i.claim <> all (p_held)
    and (i.number is null or not exists (
      select from nexus.streams h where h.request_id = i.request_id and h.attempt >= i.attempt))
  order by i.request_id
  on conflict (request_id) do update set claim = excluded.claim, attempt = excluded.attempt
  where s.attempt <= excluded.attempt
$$;

-- Where a flush goes, and whether it makes void what is there; that is deleted, so that a request that is tried many
-- times keeps one answer's worth. A claim that begins after others leaves room for numbers that a crash may have
-- taken back from them: a reader that saw one of those must not take a new chunk of that number for it.
create function nexus.place_chunk(p_request_id uuid, p_number int, p_discard boolean, out number int, out discard boolean)
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
begin
  number := p_number;
  discard := p_discard;
  if p_number is null then
    select max(c.number) + 1000 into number from nexus.chunks c where c.request_id = p_request_id;
    discard := number is not null;
    number := coalesce(number, 1);
  end if;
  if discard then
    delete from nexus.chunks c where c.request_id = p_request_id and c.number < place_chunk.number;
  end if;
end
$$;

create function nexus.notify_chunks(p_request_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_ids text;
begin
  -- ids only, and in portions: a payload of 8,000 bytes would abort the transaction
  for v_ids in
    select string_agg(e.id::text, ',')
    from unnest(p_request_ids) with ordinality as e (id, ordinal) group by (e.ordinal - 1) / 200
  loop
    perform pg_notify('pgnexus_chunks', v_ids);
  end loop;
end
$$;

-- Delete the chunks of at most p_limit requests that ended p_ttl ago, or began a day ago; returns how many.
create function nexus.prune_chunks(p_ttl interval, p_limit int) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_now timestamptz := clock_timestamp();
  v_old uuid[];
begin
  v_old := array(
    select s.request_id from nexus.streams s
    where s.begun_at < v_now - least(p_ttl, interval '1 day')
      and (s.begun_at < v_now - interval '1 day' or not exists (
        select from pgflow.runs r
        where r.run_id = s.request_id
          and (r.status = 'started' or coalesce(r.completed_at, r.failed_at) >= v_now - p_ttl)))
    order by s.begun_at limit p_limit
    for update skip locked);
  delete from nexus.chunks c where c.request_id = any (v_old);
  delete from nexus.streams s where s.request_id = any (v_old);
  return cardinality(v_old);
end
$$;
