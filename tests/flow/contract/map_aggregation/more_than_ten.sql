-- Order is by number, not by text, and arrays of arrays stay what they are.
select check_.root_map();
select check_.start('mapped', (select jsonb_agg(n) from generate_series(0, 24) n));
select * from check_.claim('mapped');
select count(t) from generate_series(24, 0, -1) n, lateral pgflow.complete_task(check_.id(),
  'each', n, jsonb_build_array(n)) t;
select check_.is((check_.state('each')).output, (select jsonb_agg(jsonb_build_array(n) order by n)
  from generate_series(0, 24) n), 'output');
select check_.complete('total', '1');
select check_.is((check_.run()).status, 'completed', 'the run');
