-- Inputs of map tasks: one element; flow_input NULL, for root maps too.
select check_.root_map();
select check_.start('mapped', '["a", null, 0, false, "", [], {"k": 1}]');
select check_.rows($$select task_index, input, flow_input from check_.claim('mapped') order by 1$$,
  $$values (0, '"a"'::jsonb, null::jsonb), (1, 'null', null), (2, '0', null), (3, 'false', null), (4, '""', null),
  (5, '[]', null),
    (6, '{"k": 1}', null)$$, 'a root map: elements of the run''s input, as they are');
select check_.fan();
select check_.start('fan', '{"n": 1}', 2);
select check_.complete('list', '[3, null, "x", [1, 2]]', 0, 2);
select check_.rows($$select step_slug, task_index, input, flow_input from check_.claim('fan') order by 2$$,
  $$values ('each', 0, '3'::jsonb, null::jsonb), ('each', 1, 'null', null), ('each', 2, '"x"', null),
  ('each', 3, '[1, 2]', null)$$,
  'a dependent map: elements of the parent''s output');
