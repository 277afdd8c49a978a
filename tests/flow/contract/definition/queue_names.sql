-- A flow's queue is of its name wherever that is legal and free, so that other languages' workers find it.
select pgflow.create_flow(slug) from unnest(array['plain', 'ai_review', 'pgflow_demo', '_x', rpad('a', 47, 'a')]) slug;
select check_.rows(
  $$select queue_name from pgmq.meta where queue_name in ('plain', 'ai_review', 'pgflow_demo', '_x', rpad('a', 47, 'a'))
    order by queue_name collate "C"$$,
  $$values ('_x'), (rpad('a', 47, 'a')), ('ai_review'), ('pgflow_demo'), ('plain')$$, 'queues');
select pgflow.add_step('ai_review', 'a');
select check_.start('ai_review');
select check_.is(message ->> 'step_slug', 'a', 'its messages are there') from pgmq.read('ai_review', 1, 1);
-- a lane of requests is nobody's free queue
select pgflow.create_flow('ai_requests');
select pgflow.add_step('ai_requests', 'a');
select check_.is(status, 'started', 'a flow called ai_requests') from pgflow.start_flow('ai_requests', '{}');
select check_.empty('select * from pgmq.q_ai_requests', 'puts nothing among the requests');
