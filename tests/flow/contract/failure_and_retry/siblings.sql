-- One task of a map fails for good: its siblings end as failed, and so do the steps beside it.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'm', step_type => 'map');
select pgflow.add_step('f', 'beside');
select pgflow.add_step('f', 'done');
select pgflow.add_step('f', 'child', array['m']);
select check_.start('f', '[1, 2, 3, 4]');
select check_.complete('done', '1');
select * from pgflow.complete_task(check_.id(), 'm', 3, '"three"');
select * from pgflow.fail_task(check_.id(), 'm', 1, 'boom');
select check_.is((check_.run()).status, 'failed', 'the run');
select check_.rows(
  format($$select step_slug, task_index, status from pgflow.step_tasks where run_id = %L order by 1, 2$$, check_.id()),
  $$values ('beside', 0, 'failed'), ('done', 0, 'completed'), ('m', 0, 'failed'), ('m', 1, 'failed'),
  ('m', 2, 'failed'), ('m', 3, 'completed')$$,
  'tasks: none is queued or started for ever');
select check_.is(check_.statuses(), 'm:failed beside:failed done:completed child:created',
  'steps: none is started for ever');
select check_.is((check_.state('m')).error_message, 'boom', 'the error is where it happened');
select check_.is((check_.task('m', 1)).error_message, 'boom', 'in the task, too');
select check_.is(check_.queued('f'), 0, 'no message is left');
