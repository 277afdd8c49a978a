-- start_delay: the step is started, its messages become visible later.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'soon');
select pgflow.add_step('f', 'late', start_delay => 300);
select pgflow.add_step('f', 'late_map', step_type => 'map', start_delay => 60);
select pgflow.add_step('f', 'child', array['soon'], start_delay => 30);
select check_.start('f', '[1, 2]');
select check_.is(check_.statuses(), 'soon:started late:started late_map:started child:created', 'states');
select check_.ok(check_.visible_at('f', 'soon') <= clock_timestamp(), 'no delay');
select check_.due(check_.visible_at('f', 'late'), '300 s', 'start_delay of a single step');
select check_.due(check_.visible_at('f', 'late_map', 0), '60 s', 'start_delay of a map, the first task');
select check_.due(check_.visible_at('f', 'late_map', 1), '60 s', 'start_delay of a map, the second task');
select check_.rows($$select step_slug from check_.claim('f')$$, $$values ('soon')$$, 'only what is due can be claimed');
select check_.complete('soon', '1');
select check_.due(check_.visible_at('f', 'child'), '30 s', 'start_delay of a dependent step');
