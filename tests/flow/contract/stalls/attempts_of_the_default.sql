-- With the default of 3 attempts, too, a stalled task comes back up to 3 times.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select check_.start('f');
create function pg_temp.stall() returns int language plpgsql as $$
begin
  perform check_.wake('f');
  perform check_.claim('f');
  perform check_.age('a', '10 minutes');
  return pgflow.requeue_stalled_tasks();
end
$$;
select check_.is(pg_temp.stall(), 1, 'the first time');
select check_.is(pg_temp.stall(), 1, 'the second time');
select check_.is(pg_temp.stall(), 1, 'the third time');
select check_.is((check_.task('a')).requeued_count, 3, 'requeued_count');
select check_.is((check_.task('a')).status, 'queued', 'queued again');
