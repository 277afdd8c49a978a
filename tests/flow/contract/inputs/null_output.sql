-- A task may complete without any output, SQL NULL: it is completed all the same, and null to those who ask.
select check_.sequential();
select check_.start('sequential');
select check_.complete('first', null);
select check_.is((check_.task('first')).status, 'completed', 'the task');
select check_.is(check_.statuses(), 'first:completed second:started last:created', 'the steps');
select check_.rows($$select input from check_.claim('sequential')$$, $$values ('{"first": null}'::jsonb)$$,
  'the child''s input');
select check_.complete('second', '1');
select check_.complete('last', null);
select check_.is((check_.run()).status, 'completed', 'the run');
select check_.is((check_.run()).output, '{"last": null}'::jsonb, 'its output');
