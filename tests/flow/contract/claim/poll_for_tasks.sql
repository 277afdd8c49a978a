-- poll_for_tasks is deprecated and returns nothing.
select check_.sequential();
select check_.start('sequential');
select check_.empty(
  $$select * from pgflow.poll_for_tasks(queue_name => 'sequential', vt => 1, qty => 10, max_poll_seconds => 1, poll_interval_ms => 10)$$,
  'nothing');
select check_.is((check_.task('first')).status, 'queued', 'and nothing is claimed');
select check_.ok(vt <= clock_timestamp() and read_ct = 0, 'nor read') from check_.messages('sequential');
