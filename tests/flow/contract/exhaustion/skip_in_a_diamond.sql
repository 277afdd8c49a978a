-- One side of a diamond is skipped: the bottom waits for the other side and gets that alone.
select pgflow.create_flow('f', max_attempts => 1);
select pgflow.add_step('f', 'top');
select pgflow.add_step('f', 'left', array['top'], when_exhausted => 'skip');
select pgflow.add_step('f', 'right', array['top']);
select pgflow.add_step('f', 'bottom', array['left', 'right']);
select check_.start('f');
select check_.complete('top', '1');
select check_.fail('left');
select check_.is(check_.statuses(), 'top:completed left:skipped right:started bottom:created', 'bottom waits');
select check_.is((check_.state('bottom')).remaining_deps, 1, 'for one');
select check_.complete('right', '"R"');
select check_.rows($$select step_slug, input from check_.claim('f')$$, $$values ('bottom', '{"right": "R"}'::jsonb)$$,
  'bottom''s input');
