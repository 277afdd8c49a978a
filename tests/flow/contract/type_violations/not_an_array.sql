-- A single parent of a map that gives no array: task, step and run fail.
select check_.fan();
select check_.start('fan', '{}', n) from generate_series(1, 5) n;
select * from check_.claim('fan');
select check_.rows(
  format('select status, output, error_message from pgflow.complete_task(%L, %L, 0, %L)', check_.id(n), 'list', output),
  format('values (%L, %L::jsonb, %L)', 'failed', output, '[TYPE_VIOLATION] Produced ' || kind || ' instead of array'),
  'the row of the task that gave ' || output)
from (values (1, '{"a": [1]}', 'object'), (2, '"text"', 'string'), (3, '0', 'number'), (4, 'false', 'boolean'),
  (5, 'null', 'null'))
  as t (n, output, kind);
select check_.rows(
  format($$select status, error_message, output, remaining_tasks is distinct from 0, failed_at is not null, completed_at from pgflow.step_states
    where run_id = %L and step_slug = 'list'$$, check_.id(n)),
  format($$values ('failed',
  '[TYPE_VIOLATION] Produced %s instead of array', null::jsonb, true, true, null::text)$$, kind), 'the step: ' || kind)
from (values (1, 'object'), (2, 'string'), (3, 'number'), (4, 'boolean'), (5, 'null')) as t (n, kind);
select check_.rows(
  format($$select status, output, failed_at is not null, completed_at from pgflow.runs
  where run_id = %L$$, check_.id(n)),
  $$values ('failed', null::jsonb, true, null::text)$$, 'the run')
from generate_series(1, 5) n;
select check_.is((check_.task('list', 0, 1)).failed_at is not null, true, 'failed_at of the task');
select check_.is(check_.statuses(1), 'list:failed each:created total:created', 'the steps below never start');
select check_.is(check_.queued('fan'), 0, 'no message is left');
select check_.is(check_.archived('fan'), 5, 'all are archived');
