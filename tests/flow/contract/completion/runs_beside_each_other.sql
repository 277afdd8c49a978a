-- Two runs of one flow do not touch each other.
select check_.fan();
select check_.start('fan', '{}', 1);
select check_.start('fan', '{}', 2);
select check_.complete('list', '[1, 2]', 0, 1);
select check_.is(check_.statuses(1), 'list:completed each:started total:created', 'the first run');
select check_.is(check_.statuses(2), 'list:started each:created total:created', 'the second run');
select check_.complete('list', '[7]', 0, 2);
select check_.is((check_.state('each', 1)).initial_tasks, 2, 'tasks of the first');
select check_.is((check_.state('each', 2)).initial_tasks, 1, 'tasks of the second');
select check_.complete('each', '"x"', 0, 2);
select check_.is((check_.state('each', 1)).remaining_tasks, 2, 'the first is where it was');
select check_.fail('each', 'boom', 1, 1);
select check_.is((check_.run(1)).status, 'failed', 'the first fails');
select check_.is((check_.run(2)).status, 'started', 'the second does not care');
select check_.complete('total', '1', 0, 2);
select check_.is((check_.run(2)).output, '{"total": 1}'::jsonb, 'the second ends well');
