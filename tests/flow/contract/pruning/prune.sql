-- prune_data_older_than: old terminal runs with all below them and their messages, old archive rows, old workers.
select check_.sequential();
select check_.start('sequential', '{}', n) from generate_series(1, 5) n;
-- 1 completed and old, 2 failed and old, 3 completed lately, 4 started long ago and running, 5 started lately
select check_.complete(step, '1', 0, n) from generate_series(1, 3, 2) n, unnest(array['first', 'second', 'last']) step;
update pgflow.step_tasks set attempts_count = 9 where run_id = check_.id(2);
select check_.fail('first', 'boom', 0, 2);
select check_.is(string_agg((check_.run(n)).status, ' ' order by n), 'completed failed completed started started',
  'the scene')
from generate_series(1, 5) n;
update pgflow.runs set started_at = now() - interval '10 days'
  where run_id in (check_.id(1), check_.id(2), check_.id(3), check_.id(4));
update pgflow.runs set completed_at = now() - interval '8 days' where run_id = check_.id(1);
update pgflow.runs set failed_at = now() - interval '8 days' where run_id = check_.id(2);
update pgflow.step_states set created_at = now() - interval '10 days',
  started_at = started_at - interval '9 days', completed_at = completed_at - interval '8 days', failed_at = failed_at - interval '8 days'
where run_id in (check_.id(1), check_.id(2), check_.id(4));
update pgflow.step_tasks set queued_at = now() - interval '10 days', started_at = started_at - interval '9 days',
  completed_at = completed_at - interval '8 days', failed_at = failed_at - interval '8 days'
where run_id in (check_.id(1), check_.id(2), check_.id(4));
update pgmq.a_sequential set archived_at = now() - interval '8 days'
  where message ->> 'run_id' in (check_.id(1)::text, check_.id(2)::text);
-- a message of an old run that was left over
update pgflow.step_tasks t set message_id = m.id
from (select pgmq.send('sequential', jsonb_build_object('flow_slug', 'sequential', 'run_id', check_.id(1), 'step_slug',
  'last', 'task_index', 0)) as id) m
where t.run_id = check_.id(1) and t.step_slug = 'last';
-- archived long ago, of a run nobody knows any more
select pgmq.archive('sequential', id) from pgmq.send('sequential', '{"of": "nobody"}') as id;
update pgmq.a_sequential set archived_at = now() - interval '8 days' where message ? 'of';
insert into pgflow.workers (worker_id, queue_name, function_name, started_at, last_heartbeat_at) values
  (check_.id(801), 'q', 'old', now() - interval '10 days', now() - interval '8 days'),
  (check_.id(802), 'q', 'alive', now() - interval '10 days', now());

select pgflow.prune_data_older_than(retention_interval => interval '7 days');

select check_.rows($$select run_id from pgflow.runs where flow_slug = 'sequential' order by 1$$,
  $$select check_.id(n) from generate_series(3, 5) n$$, 'runs: recent and running ones stay');
select check_.rows($$select distinct run_id from pgflow.step_states where flow_slug = 'sequential' order by 1$$,
  $$select check_.id(n) from generate_series(3, 5) n$$, 'step_states');
select check_.rows($$select distinct run_id from pgflow.step_tasks where flow_slug = 'sequential' order by 1$$,
  $$select check_.id(n) from generate_series(3, 5) n$$, 'step_tasks');
select check_.rows($$select distinct (message ->> 'run_id')::uuid from check_.messages('sequential') order by 1$$,
  $$select check_.id(n) from generate_series(4, 5) n$$, 'messages of pruned runs are gone, those of running ones stay');
select check_.rows($$select distinct message ->> 'run_id' from check_.archive('sequential')$$,
  $$select check_.id(3)::text$$, 'archive rows: the recent ones stay');
select check_.rows($$select function_name from pgflow.workers where worker_id in (check_.id(801), check_.id(802))$$,
  $$values ('alive')$$, 'workers: by their last heartbeat');
select check_.is(count(*), 1, 'the flow itself stays') from pgflow.flows where flow_slug = 'sequential';
select check_.is(count(*), 3, 'with its steps') from pgflow.steps where flow_slug = 'sequential';
-- those that run go on
select check_.complete('first', '1', 0, 4);
select check_.is((check_.state('second', 4)).status, 'started', 'the old running one');
