-- Shapes: a flow's graph as JSON, so that code and database can be compared. Options are applied, not compared.

create or replace function pgflow.is_local() returns boolean
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select lower(coalesce(current_setting('pgflow.is_local', true), '')) in ('on', 'true', '1', 'yes')
$$;

create or replace function pgflow.pattern_shape(p_pattern jsonb) returns jsonb
language sql immutable parallel safe as $$
  select case when p_pattern is null then jsonb_build_object('defined', false)
              else jsonb_build_object('defined', true, 'value', p_pattern) end
$$;

create or replace function pgflow.list_shape(p_list jsonb) returns text
language sql immutable parallel safe as $$
  select '[' || coalesce((select string_agg(d, ', ' order by d) from jsonb_array_elements_text(coalesce(p_list, '[]')) as d), '') || ']'
$$;

create or replace function pgflow.compare_step_shapes(p_index int, p_local jsonb, p_db jsonb) returns text[]
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select coalesce(array_agg(format('Step at index %s: %s differs %s vs %s', p_index, c.what, c.local, c.db) order by c.n), '{}')
  from (values
    (1, 'slug', quote_literal(p_local ->> 'slug'), quote_literal(p_db ->> 'slug')),
    (2, 'type', quote_literal(coalesce(p_local ->> 'stepType', 'single')), quote_literal(coalesce(p_db ->> 'stepType', 'single'))),
    (3, 'dependencies', pgflow.list_shape(p_local -> 'dependencies'), pgflow.list_shape(p_db -> 'dependencies')),
    (4, 'whenUnmet', quote_literal(coalesce(p_local ->> 'whenUnmet', 'skip')), quote_literal(coalesce(p_db ->> 'whenUnmet', 'skip'))),
    (5, 'whenExhausted', quote_literal(coalesce(p_local ->> 'whenExhausted', 'fail')), quote_literal(coalesce(p_db ->> 'whenExhausted', 'fail'))),
    (6, 'requiredInputPattern', quote_literal(coalesce(p_local -> 'requiredInputPattern', pgflow.pattern_shape(null))),
     quote_literal(coalesce(p_db -> 'requiredInputPattern', pgflow.pattern_shape(null)))),
    (7, 'forbiddenInputPattern', quote_literal(coalesce(p_local -> 'forbiddenInputPattern', pgflow.pattern_shape(null))),
     quote_literal(coalesce(p_db -> 'forbiddenInputPattern', pgflow.pattern_shape(null))))
  ) as c (n, what, local, db)
  where c.local is distinct from c.db
$$;

create or replace function pgflow._get_flow_shape(p_flow_slug text) returns jsonb
language sql stable set search_path = pg_catalog, pgflow, pg_temp as $$
  select jsonb_build_object('steps', coalesce(jsonb_agg(jsonb_build_object(
    'slug', s.step_slug,
    'stepType', s.step_type,
    'dependencies', coalesce((
      select jsonb_agg(d.dep_slug order by d.dep_slug) from pgflow.deps d
      where d.flow_slug = s.flow_slug and d.step_slug = s.step_slug), '[]'),
    'whenUnmet', s.when_unmet,
    'whenExhausted', s.when_exhausted,
    'requiredInputPattern', pgflow.pattern_shape(s.required_input_pattern),
    'forbiddenInputPattern', pgflow.pattern_shape(s.forbidden_input_pattern)
  ) order by s.step_index), '[]'))
  from pgflow.steps s where s.flow_slug = p_flow_slug
$$;

create or replace function pgflow._create_flow_from_shape(p_flow_slug text, p_shape jsonb) returns void
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_step jsonb;
begin
  perform pgflow.create_flow(
    p_flow_slug, (p_shape #>> '{options,maxAttempts}')::int, (p_shape #>> '{options,baseDelay}')::int,
    (p_shape #>> '{options,timeout}')::int);
  for v_step in select s.step from jsonb_array_elements(p_shape -> 'steps') with ordinality as s (step, n) order by s.n loop
    perform pgflow.add_step(
      flow_slug => p_flow_slug, step_slug => v_step ->> 'slug',
      deps_slugs => array(select d from jsonb_array_elements_text(coalesce(v_step -> 'dependencies', '[]')) as d),
      max_attempts => (v_step #>> '{options,maxAttempts}')::int, base_delay => (v_step #>> '{options,baseDelay}')::int,
      timeout => (v_step #>> '{options,timeout}')::int, start_delay => (v_step #>> '{options,startDelay}')::int,
      step_type => coalesce(v_step ->> 'stepType', 'single'),
      required_input_pattern => case when (v_step #>> '{requiredInputPattern,defined}')::boolean
                                     then v_step #> '{requiredInputPattern,value}' end,
      forbidden_input_pattern => case when (v_step #>> '{forbiddenInputPattern,defined}')::boolean
                                      then v_step #> '{forbiddenInputPattern,value}' end,
      when_unmet => coalesce(v_step ->> 'whenUnmet', 'skip'), when_exhausted => coalesce(v_step ->> 'whenExhausted', 'fail'));
  end loop;
end
$$;

create or replace function pgflow._compare_flow_shapes(p_local jsonb, p_db jsonb) returns text[]
language plpgsql stable set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_differences text[] := '{}';
  v_local_count int := jsonb_array_length(coalesce(p_local -> 'steps', '[]'));
  v_db_count int := jsonb_array_length(coalesce(p_db -> 'steps', '[]'));
  v_local jsonb;
  v_db jsonb;
begin
  if v_local_count <> v_db_count then
    v_differences := v_differences || format('Step count differs: %s vs %s', v_local_count, v_db_count);
  end if;
  for i in 0 .. greatest(v_local_count, v_db_count) - 1 loop
    v_local := p_local -> 'steps' -> i;
    v_db := p_db -> 'steps' -> i;
    if v_local is null then
      v_differences := v_differences || format('Step at index %s: missing in first shape (second has ''%s'')', i, v_db ->> 'slug');
    elsif v_db is null then
      v_differences := v_differences || format('Step at index %s: missing in second shape (first has ''%s'')', i, v_local ->> 'slug');
    else
      v_differences := v_differences || pgflow.compare_step_shapes(i, v_local, v_db);
    end if;
  end loop;
  return v_differences;
end
$$;

-- Make the database's flow what the code says: compile it where it is missing, verify it where it is there. A flow of
-- another shape is recompiled, with the loss of its runs, where that is allowed; else the mismatch is told.
create or replace function pgflow.ensure_flow_compiled(flow_slug text, shape jsonb, allow_data_loss boolean default false)
returns jsonb
language plpgsql set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_differences text[];
  v_status text;
begin
  perform pg_advisory_xact_lock(hashtextextended('pgflow.compile ' || ensure_flow_compiled.flow_slug, 0));
  if not exists (select from pgflow.flows f where f.flow_slug = ensure_flow_compiled.flow_slug) then
    perform pgflow._create_flow_from_shape(ensure_flow_compiled.flow_slug, shape);
    return jsonb_build_object('status', 'compiled', 'differences', '[]'::jsonb);
  end if;
  v_differences := pgflow._compare_flow_shapes(shape, pgflow._get_flow_shape(ensure_flow_compiled.flow_slug));
  if cardinality(v_differences) = 0 then
    v_status := 'verified';
  elsif allow_data_loss or pgflow.is_local() then
    perform pgflow.delete_flow_and_data(ensure_flow_compiled.flow_slug);
    perform pgflow._create_flow_from_shape(ensure_flow_compiled.flow_slug, shape);
    v_status := 'recompiled';
  else
    v_status := 'mismatch';
  end if;
  return jsonb_build_object('status', v_status, 'differences', to_jsonb(v_differences));
end
$$;

-- Delete a flow with its runs, its messages and its queue, unless the queue is somebody else's, whatever the flow's row says.
create or replace function pgflow.delete_flow_and_data(p_flow_slug text) returns void
language plpgsql security definer set search_path = pg_catalog, pgflow, pg_temp as $$
declare
  v_queue text := pgflow.queue_of(p_flow_slug);
  v_kind text;
begin
  if p_flow_slug = 'llm_request_workflow' then
    raise exception using errcode = 'PN002', message = 'llm_request_workflow belongs to pgnexus itself: it cannot be deleted';
  end if;
  if v_queue = 'pgflow_built' then
    foreach v_kind in array '{q,a}'::text[] loop  -- others go on using it
      execute format('delete from pgmq.%I where message ->> ''flow_slug'' = $1', pgmq.format_table_name(v_queue, v_kind)) using p_flow_slug;
    end loop;
  elsif pgflow.may_empty(v_queue) and not pgflow.is_foreign_queue(v_queue, p_flow_slug) then
    perform pgmq.drop_queue(v_queue);
  end if;
  delete from pgflow.step_tasks t where t.flow_slug = p_flow_slug;
  delete from pgflow.step_states st where st.flow_slug = p_flow_slug;
  delete from pgflow.runs r where r.flow_slug = p_flow_slug;
  delete from pgflow.deps d where d.flow_slug = p_flow_slug;
  delete from pgflow.steps s where s.flow_slug = p_flow_slug;
  delete from pgflow.flows f where f.flow_slug = p_flow_slug;
end
$$;
