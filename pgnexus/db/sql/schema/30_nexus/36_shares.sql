-- Fair shares: what agents have sent is looked at before its turn in its lane, and those who are crowded out are let past.

-- Who sent the messages of the lanes after those given (null: after all but the last p_limit), with their numbers;
-- at most p_limit messages and a megabyte a lane. last is the last one of the lane, seen how many there were.
create function nexus.look_ahead(p_after jsonb, p_limit int)
returns table (lane text, last bigint, seen bigint, agent_id text, msg_ids bigint[])
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
#variable_conflict use_column
begin
  foreach lane in array '{ai_requests_interactive,ai_requests,ai_requests_batch}'::text[] loop
    return query execute format(
      'with found as materialized (
         select q.msg_id, q.message, sum(pg_column_size(q.message)) over (order by q.msg_id) - pg_column_size(q.message) as before
         from pgmq.%1$I q
         where q.msg_id > coalesce($1, (select max(m.msg_id) from pgmq.%1$I m) - $2) and q.vt <= clock_timestamp()
         order by q.msg_id limit $2
       )
       select $3, max(max(f.msg_id)) over (), (sum(count(*)) over ())::bigint, coalesce(f.message ->> ''agent_id'', ''''),
              array_agg(f.msg_id order by f.msg_id)
       from found f where f.before < 1048576 group by 4', pgmq.format_table_name(lane, 'q'))
    using (p_after ->> lane)::bigint, p_limit, lane;
  end loop;
end
$$;

-- Take these messages off their lane, out of their turn, and park them in the line of shares; returns how many.
create function nexus.divert(p_worker_id uuid, p_lane text, p_msg_ids bigint[]) returns int
language plpgsql set search_path = pg_catalog, nexus, pg_temp as $$
declare
  v_messages pgmq.message_record[];
  v_parked int;
begin
  execute format(
    'with taken as (
       delete from pgmq.%1$I q where q.msg_id in (
         select m.msg_id from pgmq.%1$I m where m.msg_id = any ($1) and m.vt <= clock_timestamp() for update skip locked)
       returning q.msg_id, q.read_ct, q.enqueued_at, q.last_read_at, q.vt, q.message, q.headers
     )
     select array_agg(row(t.*)::pgmq.message_record order by t.msg_id) from taken t', pgmq.format_table_name(p_lane, 'q'))
  into v_messages using p_msg_ids;
  if v_messages is null then
    return 0;
  end if;
  select count(p.run_id) into v_parked
  from (select array_agg(s.run_id) as runs, array_agg(s.step_slug) as steps, array_agg(s.attempt) as attempts,
               array_agg('share'::text) as scopes, array_agg(s.input ->> 'priority') as priorities,
               array_agg(s.input ->> 'agent_id') as agents, array_agg(s.input ->> 'deadline') as deadlines,
               array_agg(false) as counts
        from nexus.start_messages(p_lane, p_worker_id, v_messages) s) c
  cross join lateral nexus.park(p_worker_id, c.runs, c.steps, c.attempts, c.scopes, c.priorities, c.agents, c.deadlines, c.counts)
    as p (run_id);
  return v_parked;
end
$$;

-- Agents that wait in the line of shares, and in which lane of it; up to p_limit.
create function nexus.sharers(p_limit int) returns table (lane smallint, agent_id text)
language plpgsql stable set search_path = pg_catalog, nexus, pg_temp set enable_seqscan = off set jit = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  v_from text collate "C";
  v_found int := 0;
begin
  foreach lane in array '{0,1,2}'::smallint[] loop
    v_from := '';
    while v_found < p_limit loop
      select p.agent_id into agent_id from nexus.parked p
      where p.scope = 'share' and p.lane = sharers.lane and p.agent_id >= v_from order by p.agent_id limit 1;
      exit when not found;
      v_found := v_found + 1;
      v_from := agent_id || chr(1);  -- nothing is between the two
      return next;
    end loop;
  end loop;
end
$$;
