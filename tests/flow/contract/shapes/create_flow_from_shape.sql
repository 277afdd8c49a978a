-- _create_flow_from_shape: flow, queue, steps and dependencies, with options where they are given.
select pgflow._create_flow_from_shape(p_flow_slug => 'f', p_shape => '{
  "options": {"maxAttempts": 7, "baseDelay": 2, "timeout": 30},
  "steps": [
    {"slug": "list", "stepType": "single", "dependencies": [], "whenUnmet": "skip", "whenExhausted": "fail",
     "requiredInputPattern": {"defined": true, "value": {"go": true}}, "forbiddenInputPattern": {"defined": false},
     "options": {"maxAttempts": 1, "baseDelay": 0, "timeout": 5, "startDelay": 8}},
    {"slug": "each", "stepType": "map", "dependencies": ["list"], "whenUnmet": "fail", "whenExhausted": "skip",
     "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": true, "value": {"list": []}}},
    {"slug": "join", "stepType": "single", "dependencies": ["each", "list"], "whenUnmet": "skip-cascade",
     "whenExhausted": "skip-cascade", "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": false}}]}');
select check_.rows(
  $$select opt_max_attempts, opt_base_delay, opt_timeout from pgflow.flows where flow_slug = 'f'$$,
  $$values (7, 2, 30)$$, 'the flow''s options');
select check_.rows(
  $$select step_slug, step_type, step_index, deps_count, opt_max_attempts, opt_base_delay, opt_timeout, opt_start_delay,
      required_input_pattern, forbidden_input_pattern, when_unmet, when_exhausted
    from pgflow.steps where flow_slug = 'f' order by step_index$$,
  $$values ('list', 'single', 0, 0, 1, 0, 5, 8, '{"go": true}'::jsonb, null::jsonb, 'skip', 'fail'),
    ('each', 'map', 1, 1, null, null, null, null, null, '{"list": []}', 'fail', 'skip'),
    ('join', 'single', 2, 2, null, null, null, null, null, null, 'skip-cascade', 'skip-cascade')$$, 'steps');
select check_.rows($$select dep_slug, step_slug from pgflow.deps where flow_slug = 'f' order by 2, 1$$,
  $$values ('list', 'each'), ('each', 'join'), ('list', 'join')$$, 'dependencies');
select check_.ok(to_regclass('pgmq.q_f') is not null, 'the queue');
-- without options: the defaults of create_flow
select pgflow._create_flow_from_shape('plain', '{"steps": [
  {"slug": "a", "stepType": "single", "dependencies": [], "whenUnmet": "skip", "whenExhausted": "fail",
   "requiredInputPattern": {"defined": false}, "forbiddenInputPattern": {"defined": false}}]}');
select check_.rows($$select opt_max_attempts, opt_base_delay, opt_timeout from pgflow.flows where flow_slug = 'plain'$$,
  $$values (3, 5, 60)$$, 'defaults of the flow');
select check_.rows($$select opt_max_attempts, opt_base_delay, opt_timeout, opt_start_delay
  from pgflow.steps where flow_slug = 'plain'$$,
  $$values (null::int, null::int, null::int, null::int)$$, 'none of the step');
-- there and back again
select pgflow._create_flow_from_shape('copy', pgflow._get_flow_shape('f'));
select check_.is(pgflow._get_flow_shape('copy'), pgflow._get_flow_shape('f'), 'a copy has the same shape');
