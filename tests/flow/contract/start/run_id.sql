-- run_id = NULL, or left out: the database makes one.
select check_.sequential();
select check_.ok(run_id is not null, 'a run_id is made') from pgflow.start_flow('sequential', '{}');
select check_.ok(run_id is not null, 'NULL is the same')
from pgflow.start_flow(flow_slug => 'sequential', input => '{}', run_id => null);
select check_.is(run_id, check_.id(3), 'a given one is taken') from pgflow.start_flow('sequential', '{}', check_.id(3));
select check_.is(count(distinct run_id), 3, 'three runs') from pgflow.runs where flow_slug = 'sequential';
select check_.is(count(*), 9, 'each with its states') from pgflow.step_states where flow_slug = 'sequential';
select check_.is(check_.queued('sequential'), 3, 'each with its message');
