-- _get_flow_shape: the steps in their order, with all that is compared.
select pgflow.create_flow('f', max_attempts => 9);
select pgflow.add_step('f', 'z', max_attempts => 4, start_delay => 5, required_input_pattern => '{"x": [1]}',
  when_unmet => 'fail');
select pgflow.add_step('f', 'b', step_type => 'single', when_exhausted => 'skip-cascade',
  forbidden_input_pattern => '{}');
select pgflow.add_step('f', 'a', array['z', 'b'], when_unmet => 'skip-cascade', when_exhausted => 'skip');
select pgflow.add_step('f', 'm', array['a'], step_type => 'map');
select check_.rows(
  $$select s - 'options'
  from jsonb_array_elements(pgflow._get_flow_shape(p_flow_slug => 'f') -> 'steps') with ordinality as t (s, n) order by n$$,
  $$values
    ('{"slug": "z", "stepType": "single", "dependencies": [], "whenUnmet": "fail", "whenExhausted": "fail",
       "requiredInputPattern": {"defined": true, "value": {"x": [1]}}, "forbiddenInputPattern": {"defined": false}}'::jsonb),
    ('{"slug": "b", "stepType": "single", "dependencies": [], "whenUnmet": "skip", "whenExhausted": "skip-cascade",
       "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": true, "value": {}}}'),
    ('{"slug": "a", "stepType": "single", "dependencies": ["b", "z"], "whenUnmet": "skip-cascade", "whenExhausted": "skip",
       "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": false}}'),
    ('{"slug": "m", "stepType": "map", "dependencies": ["a"], "whenUnmet": "skip", "whenExhausted": "fail",
       "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": false}}')$$, 'the steps');
select pgflow.create_flow('empty');
select check_.is(pgflow._get_flow_shape('empty') -> 'steps', '[]'::jsonb, 'a flow without steps');
