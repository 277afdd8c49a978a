-- One list, two maps of it and a single child beside them.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'x', array['list'], step_type => 'map');
select pgflow.add_step('f', 'y', array['list'], step_type => 'map');
select pgflow.add_step('f', 'whole', array['list']);
select pgflow.add_step('f', 'join', array['x', 'y', 'whole']);
select check_.start('f');
select check_.complete('list', '[1, 2]');
select check_.is(check_.statuses(), 'list:completed x:started y:started whole:started join:created',
  'all children start');
select check_.is(check_.queued('f'), 5, 'messages');
select check_.complete('x', '"x1"', 1);
select check_.complete('y', '"y0"', 0);
select check_.complete('x', '"x0"', 0);
select check_.complete('whole', '2');
select check_.complete('y', '"y1"', 1);
select check_.rows($$select input from check_.claim('f')$$,
  $$values ('{"x": ["x0", "x1"], "y": ["y0", "y1"], "whole": 2}'::jsonb)$$, 'the join''s input');
