-- Reading streams: what the caller's side may see of nexus.chunks.

-- The chunks of each request after a number, in order, at most p_limit of each; place is the request's among those asked.
create function nexus_api.read_streams(p_request_ids uuid[], p_after int[], p_limit int)
returns table (place int, number int, discard boolean, text text, reasoning text, tool_calls jsonb)
language plpgsql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
#variable_conflict use_column
begin
  return query
    select i.place::int, c.number, c.discard, c.text, c.reasoning, c.tool_calls
    from unnest(p_request_ids, p_after) with ordinality as i (request_id, after, place)
    cross join lateral (
      select n.* from nexus.chunks n
      where n.request_id = i.request_id and n.number > i.after
      order by n.number limit p_limit
    ) c
    order by i.place, c.number;
end
$$;

-- The same of one request.
create function nexus_api.read_chunks(p_request_id uuid, p_after int, p_limit int)
returns table (number int, discard boolean, text text, reasoning text, tool_calls jsonb)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  select s.number, s.discard, s.text, s.reasoning, s.tool_calls
  from nexus_api.read_streams(array[p_request_id], array[p_after], p_limit) s
$$;
