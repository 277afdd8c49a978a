-- Skipped leaves are not in the run's output; it is NULL when no leaf completed.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'a', when_exhausted => 'skip');
select pgflow.add_step('f', 'b');
select check_.start('f');
select check_.fail('a');
select check_.complete('b', '1');
select check_.is((check_.run()).output, '{"b": 1}'::jsonb, 'one of two leaves');
select pgflow.create_flow('g', max_attempts => 1);
select pgflow.add_step('g', 'a');
select pgflow.add_step('g', 'leaf', array['a'], when_exhausted => 'skip');
select check_.start('g', '{}', 2);
select check_.complete('a', '1', 0, 2);
select check_.fail('leaf', 'boom', 0, 2);
select check_.is((check_.run(2)).status, 'completed', 'a run whose only leaf was skipped');
select check_.is((check_.run(2)).output, null::jsonb, 'has no output');
