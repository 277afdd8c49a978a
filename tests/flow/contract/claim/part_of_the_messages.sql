-- Only the messages named are claimed; those of nobody, of others, none at all: no rows, no error.
select check_.root_map();
select check_.root_map('other');
select check_.start('mapped', '[1, 2, 3]');
select check_.start('other', '[1, 2, 3, 4, 5, 6, 7, 8, 9]', 2);
select check_.empty($$select * from pgflow.start_tasks('mapped', '{}', check_.worker())$$, 'no ids');
select check_.empty($$select * from pgflow.start_tasks('mapped', array[987654321, -1]::bigint[], check_.worker())$$,
  'unknown ids');
select check_.empty($$select * from pgflow.start_tasks('nowhere', array[1, 2]::bigint[], check_.worker())$$,
  'an unknown flow');
select check_.rows(
  $$select task_index, input
  from pgflow.start_tasks('mapped', array[(check_.task('each', 1)).message_id], check_.worker())$$,
  $$values (1, '2'::jsonb)$$, 'one of three');
select check_.rows(
  format($$select task_index, status, attempts_count from pgflow.step_tasks
  where run_id = %L order by 1$$, check_.id()),
  $$values (0, 'queued', 0), (1, 'started', 1), (2, 'queued', 0)$$, 'the others are queued still');
select check_.is(count(*), 0, 'message ids are of a queue: the other flow''s are not touched')
from pgflow.step_tasks where run_id = check_.id(2) and status <> 'queued';
select check_.rows(
  $$select task_index from pgflow.start_tasks('mapped', array[(check_.task('each', 0)).message_id,
    (check_.task('each', 0)).message_id, (check_.task('each', 1)).message_id], check_.worker())$$,
  $$values (0)$$, 'an id twice, and one that is started already');
select check_.is((check_.task('each', 0)).attempts_count, 1, 'one attempt');
