-- States of chains (see 50_chains), which are not stored while all goes well.

-- What the states of a chain's steps are while none is stored: nothing that its run does not tell. Four rows a request, written
-- and changed once more, were a fifth of its WAL. One that fails has them stored, for there a step has something to tell.
create or replace function pgflow.untold_states(p_run_ids uuid[]) returns setof pgflow.step_states
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return query
    select r.run_id, r.flow_slug, s.step_slug, r.started_at, d.status, case d.status when 'started' then 1 when 'completed' then 0 end,
           1, case d.status when 'created' then s.deps_count else 0 end, null::jsonb, null::text, null::text,
           case when s.deps_count = 0 then r.started_at else r.completed_at end, r.completed_at, null::timestamptz, null::timestamptz
    from unnest(p_run_ids) as i (run_id)
    cross join lateral (select * from pgflow.runs r where r.run_id = i.run_id and r.status <> 'failed' limit 1) r
    join pgflow.steps s on s.flow_slug = r.flow_slug
    cross join lateral (
      select case when r.status = 'completed' then 'completed' when s.deps_count = 0 then 'started' else 'created' end as status) d
    where not exists (select from pgflow.step_states st where st.run_id = r.run_id);
end
$$;

-- Store the states of chains that are about to end in any other way than by complete_chains, or to be looked after by what knows
-- steps only by their states. Whoever calls it holds the runs' tasks.
create or replace function pgflow.tell_states(p_run_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  insert into pgflow.step_states select u.* from pgflow.untold_states(p_run_ids) u order by u.run_id, u.step_slug on conflict do nothing;
end
$$;

-- A run's states, also of a chain that stores none.
create or replace function pgflow.states_of(p_run_id uuid) returns setof pgflow.step_states
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
begin
  return query select st.* from pgflow.step_states st where st.run_id = p_run_id;
  if not found then
    return query select u.* from pgflow.untold_states(array[p_run_id]) u;
  end if;
end
$$;
