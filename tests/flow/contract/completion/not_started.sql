-- A task that was not claimed is not completed; a task that does not exist has no row.
select check_.sequential();
select check_.start('sequential');
select check_.rows(
  format($$select status, output, attempts_count, completed_at from pgflow.complete_task(%L, 'first', 0,
  '1')$$, check_.id()),
  $$values ('queued', null::text, 0, null::text)$$, 'a queued task');
select check_.is(check_.statuses(), 'first:started second:created last:created', 'no step moved');
select check_.is((check_.state('first')).remaining_tasks, 1, 'remaining_tasks');
select check_.rows($$select step_slug from check_.claim('sequential')$$, $$values ('first')$$,
  'it can be claimed still');
select check_.empty(format($$select * from pgflow.complete_task(%L, 'first', 7, '1')$$, check_.id()),
  'an unknown task');
select check_.empty(format($$select * from pgflow.complete_task(%L, 'last', 0, '1')$$, check_.id()),
  'a step without tasks yet');
select check_.empty(format($$select * from pgflow.complete_task(%L, 'first', 0, '1')$$, check_.id(99)),
  'an unknown run');
select check_.is(check_.statuses(), 'first:started second:created last:created', 'no step moved');
