-- The step's own max_attempts and base_delay go before the flow's.
select pgflow.create_flow('f', max_attempts => 2, base_delay => 3);
select pgflow.add_step('f', 'flows');
select pgflow.add_step('f', 'own', max_attempts => 3, base_delay => 7);
select pgflow.add_step('f', 'at_once', max_attempts => 3, base_delay => 0);
select check_.start('f');
select * from check_.claim('f');
select count(*) from unnest(array['flows', 'own', 'at_once']) s, lateral pgflow.fail_task(check_.id(), s, 0, 'boom');
select check_.due(check_.visible_at('f', 'flows'), '6 s', 'the flow''s base_delay');
select check_.due(check_.visible_at('f', 'own'), '14 s', 'the step''s base_delay');
select check_.due(check_.visible_at('f', 'at_once'), '0', 'base_delay 0');
select check_.fail('own');
select check_.due(check_.visible_at('f', 'own'), '28 s', 'the step''s second delay');
select check_.is((check_.task('own')).status, 'queued', 'a third attempt of three');
select check_.fail('flows');
select check_.is((check_.task('flows')).status, 'failed', 'no third attempt of two');
-- one attempt
select pgflow.create_flow('once', max_attempts => 1);
select pgflow.add_step('once', 'a');
select check_.start('once', '{}', 2);
select check_.fail('a', 'boom', 0, 2);
select check_.is((check_.run(2)).status, 'failed', 'max_attempts 1');
