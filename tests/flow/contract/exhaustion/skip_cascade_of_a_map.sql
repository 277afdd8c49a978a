-- A map that fails with skip-cascade takes its siblings' messages and all below it along, once.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'm', step_type => 'map', when_exhausted => 'skip-cascade');
select pgflow.add_step('f', 'n', array['m'], step_type => 'map');
select pgflow.add_step('f', 'total', array['n']);
select pgflow.add_step('f', 'beside');
select check_.start('f', '[1, 2, 3]');
select check_.fail('m', 'boom', 1);
select check_.is(check_.statuses(), 'm:skipped n:skipped total:skipped beside:started', 'states');
select check_.is((check_.state('n')).skip_reason, 'dependency_skipped', 'not [] as with skip');
select check_.is((check_.run()).remaining_steps, 1, 'remaining_steps');
select * from pgflow.fail_task(check_.id(), 'm', 0, 'late');
select check_.is((check_.run()).remaining_steps, 1, 'a late sibling counts nothing');
select check_.rows($$select message ->> 'step_slug' from check_.messages('f')$$, $$values ('beside')$$, 'messages');
select check_.complete('beside', '1');
select check_.is((check_.run()).output, '{"beside": 1}'::jsonb, 'the run');
