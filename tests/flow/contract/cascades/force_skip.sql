-- _cascade_force_skip_steps(run_id, step_slug, skip_reason): the step and its descendants; idempotent.
select check_.diamond();
select pgflow.add_step('diamond', 'beside');
select check_.start('diamond');
select * from check_.claim('diamond', 1);
select check_.is(
  pgflow._cascade_force_skip_steps(run_id => check_.id(), step_slug => 'top', skip_reason => 'handler_failed'), 4,
  'four steps');
select check_.rows(
  format($$select step_slug, status, skip_reason, remaining_tasks, skipped_at is not null from pgflow.step_states
  where run_id = %L order by 1$$, check_.id()),
  $$values ('beside', 'started', null, 1, false), ('bottom', 'skipped', 'dependency_skipped', null::int, true),
    ('left', 'skipped', 'dependency_skipped', null, true), ('right', 'skipped', 'dependency_skipped', null, true),
    ('top', 'skipped', 'handler_failed', null, true)$$, 'the reason given, and dependency_skipped below');
select check_.is((check_.run()).remaining_steps, 1, 'the run''s count');
select check_.rows($$select message ->> 'step_slug' from check_.messages('diamond')$$, $$values ('beside')$$,
  'its messages are archived');
select check_.rows($$select message ->> 'step_slug' from check_.archive('diamond')$$, $$values ('top')$$, 'archive');
select check_.is(pgflow._cascade_force_skip_steps(check_.id(), 'top', 'handler_failed'), 0, 'again');
select check_.is((check_.run()).remaining_steps, 1, 'the run''s count again');
-- a created step
select check_.start('diamond', '{}', 2);
select check_.is(pgflow._cascade_force_skip_steps(check_.id(2), 'left', 'condition_unmet'), 2, 'a created step');
select check_.is(check_.statuses(2), 'top:started left:skipped right:created bottom:skipped beside:started', 'states');
select check_.is((check_.state('left', 2)).skip_reason, 'condition_unmet', 'its reason');
-- on top of what is skipped already
select check_.is(pgflow._cascade_force_skip_steps(check_.id(2), 'top', 'handler_failed'), 2,
  'only those that were left');
select check_.is((check_.state('left', 2)).skip_reason, 'condition_unmet', 'the first reason stays');
select check_.is((check_.run(2)).remaining_steps, 1, 'the second run''s count');
-- a completed step is not skipped
select check_.start('diamond', '{}', 3);
select check_.complete('top', '1', 0, 3);
select pgflow._cascade_force_skip_steps(check_.id(3), 'top', 'handler_failed');
select check_.is((check_.state('top', 3)).status, 'completed', 'completed stays completed');
