-- The step's own timeout goes before the flow's.
select pgflow.create_flow('f', timeout => 60, max_attempts => 10);
select pgflow.add_step('f', 'slow', timeout => 3600);
select pgflow.add_step('f', 'quick', timeout => 5);
select pgflow.add_step('f', 'flows');
select check_.start('f');
select * from check_.claim('f');
select check_.age(step, '36 s') from unnest(array['slow', 'quick', 'flows']) step;
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'after 36 s');
select check_.is((check_.task('quick')).status, 'queued', 'timeout 5 s');
select check_.age(step, '100 s') from unnest(array['slow', 'flows']) step;
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'after 100 s');
select check_.is((check_.task('flows')).status, 'queued', 'timeout 60 s');
select check_.is((check_.task('slow')).status, 'started', 'timeout 3600 s');
select check_.age('slow', '3631 s');
select check_.is(pgflow.requeue_stalled_tasks(), 1, 'after an hour');
select check_.is((check_.task('slow')).status, 'queued', 'timeout 3600 s is over, too');
