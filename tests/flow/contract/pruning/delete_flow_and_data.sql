-- delete_flow_and_data: nothing of the flow is left, not even its queue; other flows stay.
select check_.fan();
select check_.sequential();
select check_.start('fan', '{}', 1);
select check_.start('fan', '{}', 2);
select check_.complete('list', '[1, 2]', 0, 1);
select check_.complete('list', '[1, 2]', 0, 2);
select check_.start('sequential', '{}', 3);
select pgflow.delete_flow_and_data(p_flow_slug => 'fan');
select check_.empty($$select flow_slug from pgflow.flows where flow_slug = 'fan'$$, 'flows');
select check_.empty($$select flow_slug from pgflow.steps where flow_slug = 'fan'$$, 'steps');
select check_.empty($$select flow_slug from pgflow.deps where flow_slug = 'fan'$$, 'deps');
select check_.empty($$select flow_slug from pgflow.runs where flow_slug = 'fan'$$, 'runs');
select check_.empty($$select flow_slug from pgflow.step_states where flow_slug = 'fan'$$, 'step_states');
select check_.empty($$select flow_slug from pgflow.step_tasks where flow_slug = 'fan'$$, 'step_tasks');
select check_.empty($$select queue_name from pgmq.meta where queue_name = 'fan'$$, 'its queue');
select check_.ok(to_regclass('pgmq.q_fan') is null, 'the queue''s table');
select check_.ok(to_regclass('pgmq.a_fan') is null, 'the archive');
select check_.is(check_.statuses(3), 'first:started second:created last:created', 'the other flow');
select check_.is(check_.queued('sequential'), 1, 'and its queue');
-- it can be made again
select check_.fan();
select check_.start('fan', '{}', 1);
select check_.is(check_.queued('fan'), 1, 'made again');
-- an unknown one is no fault
select pgflow.delete_flow_and_data('nowhere');
