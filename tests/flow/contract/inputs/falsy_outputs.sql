-- 0, false, "", null, [] and {} come back as what they were: in the task, the step, the children's inputs, the run.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'zero'), pgflow.add_step('f', 'no'), pgflow.add_step('f', 'empty'),
  pgflow.add_step('f', 'nothing'), pgflow.add_step('f', 'list'), pgflow.add_step('f', 'object');
select pgflow.add_step('f', 'join', array['zero', 'no', 'empty', 'nothing', 'list', 'object']);
select check_.start('f');
select check_.complete(step, output::jsonb)
from (values ('zero', '0'), ('no', 'false'), ('empty', '""'), ('nothing', 'null'), ('list', '[]'),
  ('object', '{}')) as t (step, output);
select check_.rows(
  format($$select step_slug, output from pgflow.step_tasks
  where run_id = %L and step_slug <> 'join' order by 1$$, check_.id()),
  $$values ('empty', '""'::jsonb), ('list', '[]'), ('no', 'false'), ('nothing', 'null'), ('object', '{}'),
  ('zero', '0')$$, 'tasks');
select check_.rows(
  format($$select step_slug, output from pgflow.step_states
  where run_id = %L and step_slug <> 'join' order by 1$$, check_.id()),
  $$values ('empty', '""'::jsonb), ('list', '[]'), ('no', 'false'), ('nothing', 'null'), ('object', '{}'),
  ('zero', '0')$$, 'steps');
select check_.rows($$select input from check_.claim('f')$$,
  $$values ('{"zero": 0, "no": false, "empty": "", "nothing": null, "list": [], "object": {}}'::jsonb)$$,
  'the input of their child');
select check_.complete('join', 'false');
select check_.is((check_.run()).output, '{"join": false}'::jsonb, 'the run''s output');

-- and as leaves
select pgflow.create_flow('leaves');
select pgflow.add_step('leaves', 'zero'), pgflow.add_step('leaves', 'no'), pgflow.add_step('leaves', 'empty'),
  pgflow.add_step('leaves', 'nothing');
select check_.start('leaves', 'false', 2);
select check_.is(flow_input, 'false'::jsonb, 'a falsy input of the run')
  from check_.claim('leaves') where step_slug = 'no';
select check_.complete(step, output::jsonb, 0, 2)
from (values ('zero', '0'), ('no', 'false'), ('empty', '""'), ('nothing', 'null')) as t (step, output);
select check_.is((check_.run(2)).output, '{"zero": 0, "no": false, "empty": "", "nothing": null}'::jsonb,
  'the run''s output');
