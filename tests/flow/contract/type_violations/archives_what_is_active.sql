-- All active messages of the run are archived, queued or started, and nobody can go on.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'list');
select pgflow.add_step('f', 'each', array['list'], step_type => 'map');
select pgflow.add_step('f', 'running');
select pgflow.add_step('f', 'waiting', start_delay => 600);
select check_.start('f', '{}', 1);
select check_.start('f', '{}', 2);
select check_.complete('list', '"no"', 0, 1);
select check_.is((check_.run(1)).status, 'failed', 'the run');
select check_.empty(format($$select * from check_.messages('f') where message ->> 'run_id' = %L$$, check_.id(1)),
  'no message of it is left');
select check_.is(count(*), 3, 'all three are in the archive') from check_.archive('f')
  where message ->> 'run_id' = check_.id(1)::text;
select check_.is(count(*), 3, 'the other run has its messages') from check_.messages('f')
  where message ->> 'run_id' = check_.id(2)::text;
select check_.rows(
  format($$select status, output from pgflow.complete_task(%L, 'list', 0, '[1]')$$, check_.id(1)),
  $$values ('failed', '"no"'::jsonb)$$, 'a second try with an array comes too late');
select check_.is((check_.run(1)).status, 'failed', 'the run stays failed');
select check_.is((check_.run(2)).status, 'started', 'the other run');
