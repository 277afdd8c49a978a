-- when_exhausted => skip-cascade: all that depends on it, near or far, is skipped as dependency_skipped.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a', when_exhausted => 'skip-cascade');
select pgflow.add_step('f', 'b');
select pgflow.add_step('f', 'child', array['a']);
select pgflow.add_step('f', 'map_child', array['a'], step_type => 'map');
select pgflow.add_step('f', 'join', array['child', 'b']);
select pgflow.add_step('f', 'of_b', array['b']);
select check_.start('f');
select check_.fail('a', 'boom');
select check_.rows(
  format($$select step_slug, status, skip_reason, error_message, remaining_tasks, skipped_at is not null
  from pgflow.step_states
    where run_id = %L order by 1$$, check_.id()),
  $$values ('a', 'skipped', 'handler_failed', 'boom', null::int, true), ('b', 'started', null, null, 1, false),
    ('child', 'skipped', 'dependency_skipped', null, null, true),
    ('join', 'skipped', 'dependency_skipped', null, null, true),
    ('map_child', 'skipped', 'dependency_skipped', null, null, true), ('of_b', 'created', null, null, null, false)$$,
    'states');
select check_.is((check_.run()).remaining_steps, 2, 'remaining_steps');
select check_.is((check_.run()).status, 'started', 'the run goes on');
select check_.complete('b', '"B"');
select check_.is(check_.statuses(), 'a:skipped b:completed child:skipped map_child:skipped join:skipped of_b:started',
  'after b');
select check_.complete('of_b', '1');
select check_.is((check_.run()).output, '{"of_b": 1}'::jsonb, 'the run''s output');
select check_.is((check_.run()).remaining_steps, 0, 'nothing remains');
-- nothing beside it: the run ends
select pgflow.create_flow('g', max_attempts => 1);
select pgflow.add_step('g', 'a', when_exhausted => 'skip-cascade');
select pgflow.add_step('g', 'child', array['a']);
select check_.start('g', '{}', 2);
select check_.fail('a', 'boom', 0, 2);
select check_.is((check_.run(2)).status, 'completed', 'everything skipped');
select check_.is((check_.run(2)).output, null::jsonb, 'no output');
