-- However a run fails, no task of it is left queued or started, no step started, no message on the queue.
select pgflow.create_flow('f', max_attempts => 1, timeout => 5);
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'each', array['list'], step_type => 'map');
select pgflow.add_step('f', 'guard', array['list'], forbidden_input_pattern => '{"list": [0]}', when_unmet => 'fail');
select pgflow.add_step('f', 'wide', step_type => 'map');
select pgflow.add_step('f', 'delayed', start_delay => 500);
select check_.start('f', '[1, 2, 3]', n) from generate_series(1, 4) n;
-- by a failure, a type violation, a condition, a stall
select check_.fail('wide', 'boom', 1, 1);
select check_.complete('list', '{}', 0, 2);
select check_.complete('list', '[0]', 0, 3);
update pgflow.step_tasks set requeued_count = 3 where run_id = check_.id(4);
select check_.age('wide', '1 hour', 2, 4);
select pgflow.requeue_stalled_tasks();
select check_.is((check_.run(n)).status, 'failed', 'run ' || n) from generate_series(1, 4) n;
select check_.empty($$select run_id, step_slug, task_index, status
  from pgflow.step_tasks where flow_slug = 'f' and status in ('queued', 'started')$$, 'tasks');
select check_.empty($$select run_id, step_slug, status
  from pgflow.step_states where flow_slug = 'f' and status = 'started'$$, 'steps');
select check_.empty($$select * from check_.messages('f')$$, 'messages');
