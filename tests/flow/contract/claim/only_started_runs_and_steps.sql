-- Only tasks of started runs and started steps are claimed.
select check_.root_map();
select check_.start('mapped', '[1]', 1);
select check_.start('mapped', '[1]', 2);
select check_.start('mapped', '[1]', 3);
select check_.start('mapped', '[1]', 4);
update pgflow.runs set status = 'failed', failed_at = now() where run_id = check_.id(1);
update pgflow.runs set status = 'completed', completed_at = now(), remaining_steps = 0 where run_id = check_.id(2);
update pgflow.step_states set status = 'skipped', skip_reason = 'handler_failed', skipped_at = now(), remaining_tasks = null
where run_id = check_.id(3) and step_slug = 'each';
select check_.rows($$select run_id from check_.claim('mapped')$$, format('values (%L)', check_.id(4)),
  'only of the started run and step');
select check_.rows(
  $$select status, attempts_count, started_at from pgflow.step_tasks
  where run_id <> check_.id(4) and flow_slug = 'mapped'$$,
  $$values ('queued', 0, null::text), ('queued', 0, null), ('queued', 0, null)$$, 'the other tasks are as they were');
