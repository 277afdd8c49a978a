-- A map of a map gets the elements its parent's tasks made, in their order.
select check_.root_map();
select pgflow.add_step('mapped', 'again', array['each'], step_type => 'map');
select pgflow.add_step('mapped', 'join', array['again', 'total']);
select check_.start('mapped', '[1, 2, 3]');
select check_.complete('each', '{"of": 3}', 2);
select check_.complete('each', 'null', 0);
select check_.complete('each', '[2]', 1);
select check_.rows($$select step_slug, task_index, input, flow_input from check_.claim('mapped') order by 1, 2$$,
  $$values ('again', 0, 'null'::jsonb, null::jsonb), ('again', 1, '[2]', null), ('again', 2, '{"of": 3}', null),
    ('total', 0, '{"each": [null, [2], {"of": 3}]}', null)$$, 'elements, and the whole for a single child');
select check_.complete('again', '"c"', 2);
select check_.complete('again', '"b"', 1);
select check_.complete('again', '"a"', 0);
select check_.complete('total', '3');
select check_.rows($$select step_slug, input from check_.claim('mapped')$$,
  $$values ('join', '{"again": ["a", "b", "c"], "total": 3}'::jsonb)$$, 'the join');
-- a task that gave nothing, SQL NULL, is null to the task of its index
select check_.start('mapped', '[1, 2]', 2);
select check_.complete('each', null, 0, 2);
select check_.complete('each', '0', 1, 2);
select check_.rows($$select task_index, input from check_.claim('mapped') where step_slug = 'again' order by 1$$,
  $$values (0, 'null'::jsonb), (1, '0')$$, 'SQL NULL');
