-- A wide dependent map, claimed in batches: each task its own element, each once.
select check_.fan();
select check_.start('fan');
select check_.complete('list', (select jsonb_agg(jsonb_build_object('n', n, 'text', repeat('x', 1000)) order by n)
  from generate_series(0, 1999) n));
select check_.is((check_.state('each')).initial_tasks, 2000, 'tasks');
create temporary table claimed on commit drop as
select c.* from generate_series(1, 8) n, lateral check_.claim('fan', 250 + 0 * n) c;
select check_.is(count(*), 2000, 'all are claimed') from claimed;
select check_.is(count(distinct task_index), 2000, 'each once') from claimed;
select check_.is(count(*), 0,
  'none has another''s element') from claimed where input -> 'n' is distinct from to_jsonb(task_index);
select check_.is(count(*), 0, 'flow_input') from claimed where flow_input is not null;
select count(t) from claimed c,
  lateral pgflow.complete_task(c.run_id, c.step_slug, c.task_index, to_jsonb(c.task_index)) t;
select check_.is((check_.state('each')).output, (select jsonb_agg(n order by n) from generate_series(0, 1999) n),
  'the output, in order');
select check_.complete('total', '1');
select check_.is((check_.run()).status, 'completed', 'the run');
