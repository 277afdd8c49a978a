-- _compare_flow_shapes(p_local, p_db): one text a difference, none for options.
create function pg_temp.shape(variadic steps jsonb[]) returns jsonb language sql as $$
  select jsonb_build_object('steps', coalesce(jsonb_agg(
    '{"slug": "a", "stepType": "single", "dependencies": [], "whenUnmet": "skip", "whenExhausted": "fail",
      "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": false}}'::jsonb || s order by n), '[]'))
  from unnest(steps) with ordinality as t (s, n)
$$;
select check_.is(pgflow._compare_flow_shapes(p_local => pg_temp.shape('{}'), p_db => pg_temp.shape('{}')),
  '{}'::text[], 'the same');
select check_.is(pgflow._compare_flow_shapes(pg_temp.shape('{}'), pg_temp.shape('{"slug": "b"}')),
  array['Step at index 0: slug differs ''a'' vs ''b'''], 'the first is the local one');
select check_.is(pgflow._compare_flow_shapes(pg_temp.shape('{}', '{"slug": "x"}'), pg_temp.shape('{}',
  '{"slug": "y"}')),
  array['Step at index 1: slug differs ''x'' vs ''y'''], 'the index counts from 0');
select check_.is(pgflow._compare_flow_shapes(pg_temp.shape('{"slug": "x"}',
  '{"slug": "y"}'), pg_temp.shape('{"slug": "y"}', '{"slug": "x"}')),
  array['Step at index 0: slug differs ''x'' vs ''y''', 'Step at index 1: slug differs ''y'' vs ''x'''],
  'order counts');
select check_.rows(
  format('select cardinality(d), d[1] ~ %L from pgflow._compare_flow_shapes(%L, %L) d',
  '^Step at index 0: ', pg_temp.shape('{}'), pg_temp.shape(other)),
  'values (1, true)', 'one difference, of step 0: ' || other::text)
from unnest(array['{"stepType": "map"}', '{"dependencies": ["b"]}', '{"whenUnmet": "fail"}',
  '{"whenExhausted": "skip"}',
  '{"requiredInputPattern": {"defined": true, "value": {}}}',
  '{"forbiddenInputPattern": {"defined": true, "value": {"a": null}}}']::jsonb[]) other;
select check_.is(cardinality(pgflow._compare_flow_shapes(
  pg_temp.shape('{"requiredInputPattern": {"defined": true, "value": {"a": 1}}}'),
  pg_temp.shape('{"requiredInputPattern": {"defined": true, "value": {"a": 2}}}'))), 1, 'values of patterns');
select check_.is(cardinality(pgflow._compare_flow_shapes(
  pg_temp.shape('{"slug": "a", "whenUnmet": "fail"}'), pg_temp.shape('{"slug": "b", "stepType": "map"}'))), 3,
  'three differences');
select check_.ok(cardinality(pgflow._compare_flow_shapes(pg_temp.shape('{}',
  '{"slug": "b"}'), pg_temp.shape('{}'))) > 0, 'one more here');
select check_.ok(cardinality(pgflow._compare_flow_shapes(pg_temp.shape('{}'), pg_temp.shape('{}',
  '{"slug": "b"}'))) > 0, 'one more there');
select check_.is(pgflow._compare_flow_shapes(
    pg_temp.shape('{"options": {"maxAttempts": 1, "startDelay": 4}}') || '{"options": {"timeout": 1}}', pg_temp.shape('{}')),
  '{}'::text[], 'options are not compared');
