-- What a shape leaves out is the default: the same shape that compiled a flow verifies it.
create temporary table shape on commit drop as select '{"steps": [
  {"slug": "a", "stepType": "single", "dependencies": []},
  {"slug": "b", "stepType": "map", "dependencies": ["a"]}]}'::jsonb as shape;
select check_.is(pgflow.ensure_flow_compiled('f', shape) ->> 'status', 'compiled', 'compiled') from shape;
select check_.rows(
  $$select step_slug, when_unmet, when_exhausted, required_input_pattern, forbidden_input_pattern from pgflow.steps
    where flow_slug = 'f' order by step_index$$,
  $$values ('a', 'skip', 'fail', null::jsonb, null::jsonb), ('b', 'skip', 'fail', null, null)$$, 'the defaults');
select check_.is(pgflow.ensure_flow_compiled('f', shape), '{"status": "verified", "differences": []}'::jsonb,
  'verified') from shape;
-- the order in which dependencies are written is no difference
select pgflow._create_flow_from_shape('g', '{"steps": [{"slug": "x", "stepType": "single", "dependencies": []},
  {"slug": "y", "stepType": "single", "dependencies": []}, {"slug": "z", "stepType": "single", "dependencies": ["y", "x"]}]}');
select check_.is(pgflow._get_flow_shape('g') #> '{steps,2,dependencies}', '["x", "y"]'::jsonb,
  'dependencies are sorted');
