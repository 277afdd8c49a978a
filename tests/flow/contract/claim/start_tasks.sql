-- start_tasks: attempts + 1, started_at, last_worker_id, visibility = timeout + 2 s.
select pgflow.create_flow('f', timeout => 100);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'own', timeout => 7);
select check_.start('f', '{"n": 1}');
create temporary table read on commit drop as select * from pgmq.read('f', 1, 10);
select check_.is(count(*), 2, 'two messages read') from read;
select check_.rows(
  $$select c.flow_slug, c.run_id, c.step_slug, c.input, c.msg_id = t.message_id, c.task_index, c.flow_input
    from pgflow.start_tasks(flow_slug => 'f', msg_ids => array(select msg_id from read), worker_id => check_.worker()) c
    join pgflow.step_tasks t using (run_id, step_slug, task_index) order by c.step_slug$$,
  format($$values ('f', '%1$s', 'a', '{}'::jsonb, true, 0, '{"n": 1}'::jsonb),
    ('f', '%1$s', 'own', '{}', true, 0, '{"n": 1}')$$, check_.id()), 'what a claim returns');
select check_.rows(
  format($$select step_slug, status, attempts_count, last_worker_id, requeued_count from pgflow.step_tasks
    where run_id = %L order by step_slug$$, check_.id()),
  format($$values ('a', 'started', 1, '%1$s', 0), ('own', 'started', 1, '%1$s', 0)$$, check_.worker()), 'the tasks');
select check_.due((check_.task('a')).started_at, '0', 'started_at');
select check_.due(check_.visible_at('f', 'a'), '102 s', 'the flow''s timeout + 2 s');
select check_.due(check_.visible_at('f', 'own'), '9 s', 'the step''s timeout + 2 s');
select check_.is(check_.queued('f'), 2, 'the messages stay on the queue');
select check_.empty(
  $$select * from pgflow.start_tasks('f', array(select msg_id from read), check_.worker(2))$$,
  'nothing is claimed twice');
select check_.is((check_.task('a')).attempts_count, 1, 'the second claim counts no attempt');
select check_.is((check_.task('a')).last_worker_id, check_.worker(), 'nor changes the worker');
select check_.is(check_.statuses(), 'a:started own:started', 'the steps are what they were');
