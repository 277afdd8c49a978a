-- met = input @> required AND NOT input @> forbidden, over the run's input for roots.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'always');
select pgflow.add_step('f', 'vip', required_input_pattern => '{"kind": "vip"}');
select pgflow.add_step('f', 'not_vip', forbidden_input_pattern => '{"kind": "vip"}');
select pgflow.add_step('f', 'both', required_input_pattern => '{"kind": "vip"}',
  forbidden_input_pattern => '{"test": true}');
select pgflow.add_step('f', 'deep', required_input_pattern => '{"user": {"tags": ["a"]}}');
select pgflow.add_step('f', 'any', required_input_pattern => '{}');
select pgflow.add_step('f', 'never', forbidden_input_pattern => '{}');
select check_.start('f', input::jsonb, n)
from (values (1, '{"kind": "vip"}'), (2, '{}'),
  (3, '{"kind": "vip", "test": true, "user": {"tags": ["b", "a"], "x": 1}}')) as t (n, input);
select check_.is(check_.statuses(1),
  'always:started vip:started not_vip:skipped both:started deep:skipped any:started never:skipped', 'a vip');
select check_.is(check_.statuses(2),
  'always:started vip:skipped not_vip:started both:skipped deep:skipped any:started never:skipped', 'an empty input');
select check_.is(check_.statuses(3),
  'always:started vip:started not_vip:skipped both:skipped deep:started any:started never:skipped', 'a vip on trial');
select check_.is((check_.run(1)).remaining_steps, 4, 'skipped steps are counted off');
select check_.rows(
  format($$select step_slug, skip_reason, remaining_tasks, error_message, skipped_at is not null, started_at
  from pgflow.step_states
    where run_id = %L and status = 'skipped' order by 1$$, check_.id(1)),
  $$values ('deep', 'condition_unmet', null::int, null::text, true, null::text),
  ('never', 'condition_unmet', null, null, true, null),
    ('not_vip', 'condition_unmet', null, null, true, null)$$, 'skipped as condition_unmet');
select check_.empty($$select * from pgflow.step_tasks t join pgflow.step_states s using (run_id, step_slug)
  where s.status = 'skipped'$$,
  'what is skipped has no tasks');
select check_.is(check_.queued('f'), 4 + 3 + 4, 'nor messages');
