-- The bottom of a diamond starts once, when both sides are done.
select check_.diamond();
select check_.start('diamond');
select check_.complete('top', '1');
select check_.is(check_.statuses(), 'top:completed left:started right:started bottom:created', 'both sides');
select check_.complete('right', '2');
select check_.is((check_.state('bottom')).remaining_deps, 1, 'one is left');
select check_.is(check_.statuses(), 'top:completed left:started right:completed bottom:created', 'bottom waits');
select check_.complete('left', '3');
select check_.is(check_.statuses(), 'top:completed left:completed right:completed bottom:started', 'bottom starts');
select check_.is(count(*), 1, 'once') from pgflow.step_tasks where run_id = check_.id() and step_slug = 'bottom';
select check_.complete('bottom', '4');
select check_.is((check_.run()).output, '{"bottom": 4}'::jsonb, 'output');
select check_.is(check_.archived('diamond'), 4, 'archive');
