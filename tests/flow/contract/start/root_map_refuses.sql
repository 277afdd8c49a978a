-- Root maps want an array.
select check_.root_map();
select check_.throws($$select * from pgflow.start_flow('mapped', null)$$, 'P0001',
  'Flow mapped has root map steps but input is NULL', 'NULL');
select check_.throws(
  format('select * from pgflow.start_flow(%L, %L)', 'mapped', given), 'P0001',
  'Flow mapped has root map steps but input is not an array (got ' || kind || ')', 'input ' || given)
from (values ('{}', 'object'), ('"a"', 'string'), ('1', 'number'), ('true', 'boolean'),
  ('null', 'null')) as t (given, kind);
select check_.throws($$select * from pgflow.start_flow_with_states('mapped', '{}')$$, 'P0001',
  'Flow mapped has root map steps but input is not an array (got object)', 'start_flow_with_states says the same');
select check_.empty($$select * from pgflow.runs where flow_slug = 'mapped'$$, 'no run was made');
select check_.is(check_.queued('mapped'), 0, 'no message was sent');
-- a map further down does not care for the run's input
select check_.fan();
select check_.is(status, 'started', 'a dependent map') from pgflow.start_flow('fan', '{}');
