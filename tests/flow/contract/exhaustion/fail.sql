-- when_exhausted => fail, the default: step and run fail, all active messages of the run are archived.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a', when_exhausted => 'fail');
select pgflow.add_step('f', 'running');
select pgflow.add_step('f', 'waiting', start_delay => 600);
select pgflow.add_step('f', 'child', array['a']);
select check_.start('f', '{}', 1);
select check_.start('f', '{}', 2);
select * from check_.claim('f');
select check_.rows(
  format($$select status, error_message, attempts_count from pgflow.fail_task(%L, 'a', 0, 'boom')$$, check_.id()),
  $$values ('failed', 'boom', 1)$$, 'the row');
select check_.is((check_.state('a')).status, 'failed', 'the step');
select check_.is((check_.state('a')).error_message, 'boom', 'its error');
select check_.is((check_.run()).status, 'failed', 'the run');
select check_.empty(format($$select * from check_.messages('f') where message ->> 'run_id' = %L$$, check_.id()),
  'no message of the run');
select check_.rows(
  format($$select message ->> 'step_slug' from check_.archive('f')
  where message ->> 'run_id' = %L order by 1$$, check_.id()),
  $$values ('a'), ('running'), ('waiting')$$, 'claimed, running and delayed ones are archived');
select check_.is(check_.queued('f'), 3, 'the other run has its messages');
select check_.is((check_.run(2)).status, 'started', 'the other run goes on');
