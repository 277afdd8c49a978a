-- Flows built at run time share a queue: deleting one takes its messages along and leaves the others'.
create temporary table built on commit drop as
select n, b.flow_slug from (values (1, 'a'), (2, 'b')) as t (n, slug),
  lateral pgflow.register_built_flow(format('{"steps": [{"slug": "%s", "stepType": "single", "dependencies": []},
    {"slug": "next", "stepType": "single", "dependencies": ["%1$s"]}]}', slug)::jsonb, '{}') b;
select check_.start(flow_slug, '{}', n) from built order by n;
select check_.start(flow_slug, '{}', n + 10) from built order by n;
select pgflow.start_tasks(flow_slug, array[(check_.task('a')).message_id], check_.worker()) from built where n = 1;
select * from pgflow.complete_task(check_.id(1), 'a', 0, '1');
select check_.is(count(*), 4, 'messages of both flows') from pgmq.q_pgflow_built;
select check_.is(count(*), 1, 'and one in the archive') from pgmq.a_pgflow_built;
select pgflow.delete_flow_and_data(flow_slug) from built where n = 1;
select check_.is(count(*), 0,
  'its messages') from pgmq.q_pgflow_built join built on n = 1 and flow_slug = message ->> 'flow_slug';
select check_.is(count(*), 0,
  'its archive') from pgmq.a_pgflow_built join built on n = 1 and flow_slug = message ->> 'flow_slug';
select check_.is(count(*), 2,
  'the other''s messages') from pgmq.q_pgflow_built join built on n = 2 and flow_slug = message ->> 'flow_slug';
-- the queue is there also when the last of them is gone: workers read it
select pgflow.delete_flow_and_data(flow_slug) from built where n = 2;
select check_.empty($$select * from pgflow.claim_tasks(array['pgflow_built'], check_.worker(), 10)$$,
  'the shared queue');
