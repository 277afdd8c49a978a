-- Slugs too long for a queue's name, up to 128 characters, work from the first call to the last.
create temporary table flows on commit drop as
select n, rpad('flow_of_' || length, length,
  'x') as slug from (values (1, 47), (2, 48), (3, 63), (4, 64), (5, 128)) as t (n, length);
select pgflow.create_flow(slug, max_attempts => 2) from flows order by n;
select pgflow.create_flow(slug, max_attempts => 2) from flows order by n;
select pgflow.add_step(slug, rpad('a', 128, 'a')), pgflow.add_step(slug, 'b', array[rpad('a', 128,
  'a')]) from flows order by n;
select check_.start(slug, '[]', n) from flows;
select check_.is(check_.queued(slug), 1, 'a message of ' || length(slug)) from flows;
select check_.rows(format('select flow_slug, step_slug from check_.claim(%L)', slug),
  format('values (%L, %L)', slug, rpad('a', 128, 'a')), 'a claim of ' || length(slug)) from flows;
select check_.complete(rpad('a', 128, 'a'), '1', 0, n) from flows;
select check_.fail('b', 'boom', 0, n) from flows;
select check_.due(check_.visible_at(slug, 'b', 0, n), '10 s', 'a retry of ' || length(slug)) from flows;
select check_.wake(slug) from flows;
select check_.complete('b', '2', 0, n) from flows;
select check_.is((check_.run(n)).output, '{"b": 2}'::jsonb, 'a run of ' || length(slug)) from flows;
select check_.is(check_.archived(slug), 2, 'the archive of ' || length(slug)) from flows;
select check_.start(slug, '[]', n + 10) from flows;
select * from flows, lateral check_.claim(slug);
select check_.age(rpad('a', 128, 'a'), '10 minutes', 0, n + 10) from flows;
select check_.is(pgflow.requeue_stalled_tasks(), 5, 'stalled tasks of all');
create temporary table tables on commit drop as
select format('pgmq.%I', prefix || check_.queue(slug)) as name from flows, unnest(array['q_', 'a_']) prefix;
select check_.is(count(distinct name), 10, 'each has a queue and an archive of its own') from tables;
select check_.ok(to_regclass(name) is not null, name) from tables;
select pgflow.prune_data_older_than(interval '1 day');
select pgflow.delete_flow_and_data(slug) from flows;
select check_.ok(to_regclass(name) is null, name || ' is gone') from tables;
