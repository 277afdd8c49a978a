-- The input holds completed dependencies only: what was skipped is not in it.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b', when_exhausted => 'skip');
select pgflow.add_step('f', 'join', array['a', 'b']);
select pgflow.add_step('f', 'alone', array['b']);
select check_.start('f', '{"n": 1}');
select check_.complete('a', '"A"');
select check_.fail('b');
select check_.rows($$select step_slug, input, flow_input from check_.claim('f') order by 1$$,
  $$values ('alone', '{}'::jsonb, null::jsonb), ('join', '{"a": "A"}', null)$$, 'without the skipped one');
