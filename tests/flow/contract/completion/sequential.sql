-- One step after the other.
select check_.sequential();
select check_.start('sequential');
select check_.complete('first', '1');
select check_.is(check_.statuses(), 'first:completed second:started last:created', 'after the first');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps');
select check_.is((check_.state('second')).remaining_deps, 0, 'remaining_deps of its child');
select check_.is((check_.state('last')).remaining_deps, 1, 'remaining_deps of the grandchild');
select check_.rows($$select message ->> 'step_slug' from check_.messages('sequential')$$, $$values ('second')$$,
  'queue');
select check_.is((check_.run()).status, 'started', 'the run goes on');
select check_.is((check_.run()).output, null::jsonb, 'without an output');
select check_.complete('second', '2');
select check_.is(check_.statuses(), 'first:completed second:completed last:started', 'after the second');
select check_.complete('last', '3');
select check_.is(check_.statuses(), 'first:completed second:completed last:completed', 'after the last');
select check_.is((check_.run()).output, '{"last": 3}'::jsonb, 'only the leaf is in the output');
select check_.is((check_.run()).remaining_steps, 0, 'nothing remains');
select check_.is(check_.queued('sequential'), 0, 'queue');
select check_.is(check_.archived('sequential'), 3, 'archive');
