-- A task that is not started cannot fail.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'b');
select check_.start('f');
select check_.rows(format($$select status, attempts_count, error_message from pgflow.fail_task(%L, 'a', 0,
  'boom')$$, check_.id()),
  $$values ('queued', 0, null::text)$$, 'a queued task');
select check_.is(check_.statuses(), 'a:started b:started', 'the steps');
select check_.is((check_.run()).status, 'started', 'the run');
select check_.complete('a', '1');
select check_.rows(format($$select status, output, error_message from pgflow.fail_task(%L, 'a', 0,
  'late')$$, check_.id()),
  $$values ('completed', '1'::jsonb, null::text)$$, 'a completed task');
select check_.is((check_.run()).status, 'started', 'the run goes on');
select check_.empty(format($$select * from pgflow.fail_task(%L, 'a', 5, 'boom')$$, check_.id()), 'an unknown task');
select check_.empty(format($$select * from pgflow.fail_task(%L, 'a', 0, 'boom')$$, check_.id(99)), 'an unknown run');
