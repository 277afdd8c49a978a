-- Illegal states are impossible by CHECK.
select check_.sequential();
select check_.start('sequential');
select check_.complete('first', '1');
select check_.violates(
  format('update pgflow.step_states set output = %L where run_id = %L and step_slug = %L', '1', check_.id(), slug),
  'output_only_for_completed_or_null', 'an output of the step ' || slug)
from unnest(array['second', 'last']) as slug;
select check_.throws(
  format('update pgflow.step_states set %s where run_id = %L and step_slug = %L', change, check_.id(), slug),
  '23514', null, slug || ': ' || change)
from (values
  ('second', 'skip_reason = ''condition_unmet'''),
  ('last', 'status = ''skipped'', skipped_at = now(), skip_reason = null'),
  ('first', 'failed_at = now()'),
  ('first', 'skipped_at = now()'),
  ('first', 'remaining_tasks = 1'),
  ('last', 'remaining_tasks = 1'),
  ('second', 'remaining_tasks = -1'),
  ('last', 'remaining_deps = -1'),
  ('last', 'status = ''waiting''')) as t (slug, change);
select check_.throws(
  format('update pgflow.runs set %s where run_id = %L', change, check_.id()), '23514', null, 'run: ' || change)
from unnest(array['status = ''running''', 'remaining_steps = -1']) as change;
select check_.throws(
  format('update pgflow.runs set input = null where run_id = %L', check_.id()), '23502', null,
  'a run''s input is not null');
select check_.throws(
  format('update pgflow.step_tasks set status = %L where run_id = %L', 'waiting', check_.id()), '23514', null,
  'a task''s status');
select check_.throws(
  format('update pgflow.step_tasks set attempts_count = -1 where run_id = %L', check_.id()), '23514', null, 'attempts');
-- keys
select check_.throws(
  format('insert into pgflow.step_states (run_id, flow_slug, step_slug) values (%L, %L, %L)', check_.id(),
  'sequential', 'first'),
  '23505', null, 'one state of a step in a run');
select check_.throws(
  format('insert into pgflow.step_tasks (run_id, flow_slug, step_slug, task_index) values (%L, %L, %L, 0)', check_.id(), 'sequential', 'first'),
  '23505', null, 'one task of an index in a step');
