-- Three times a stalled task comes back. The fourth time it is permanently stalled, and fails as when_exhausted says.
select pgflow.create_flow('f', max_attempts => 10);
select pgflow.add_step('f', 'a');
select pgflow.add_step('f', 'beside');
select pgflow.add_step('f', 'child', array['a']);
select check_.start('f');
create function pg_temp.stall(step text) returns void language plpgsql as $$
begin
  perform check_.wake('f');
  perform check_.claim('f');
  perform check_.age(step, '10 minutes');
  perform pgflow.requeue_stalled_tasks();
end
$$;
select pg_temp.stall('a');
select check_.is((check_.task('a')).requeued_count, 1, 'the first time');
select pg_temp.stall('a');
select pg_temp.stall('a');
select check_.is((check_.task('a')).requeued_count, 3, 'the third time');
select check_.is((check_.task('a')).status, 'queued', 'it is still to be had');
select check_.is((check_.task('a')).permanently_stalled_at, null::timestamptz, 'not permanently');
select check_.is((check_.run()).status, 'started', 'the run goes on');
select pg_temp.stall('a');
select check_.due((check_.task('a')).permanently_stalled_at, '0', 'permanently_stalled_at');
select check_.is((check_.task('a')).requeued_count, 3, 'it is not requeued a fourth time');
select check_.is(count(*), 1, 'its message is archived') from check_.archive('f') where message ->> 'step_slug' = 'a';
select check_.is((check_.task('a')).status, 'failed', 'the task has failed');
select check_.is((check_.state('a')).status, 'failed', 'so has the step');
select check_.ok((check_.state('a')).error_message is not null, 'with an error');
select check_.is((check_.run()).status, 'failed', 'and the run: it is not left started for ever');
select check_.is(check_.queued('f'), 0, 'no message is left');
select check_.is(pgflow.requeue_stalled_tasks(), 0, 'and that is all');
