-- A task that does not end its step does not rewrite the run's row, which all workers of a wide run share.
select check_.root_map();
select check_.start('mapped', '[1, 2, 3]');
select * from check_.claim('mapped');
create temporary table before on commit drop as select ctid as place from pgflow.runs where run_id = check_.id();
select * from pgflow.complete_task(check_.id(), 'each', 0, '1');
select * from pgflow.complete_task(check_.id(), 'each', 2, '3');
select check_.is(r.ctid::text, b.place::text,
  'the run''s row') from before b, pgflow.runs r where r.run_id = check_.id();
select check_.is((check_.state('each')).remaining_tasks, 1, 'the tasks are counted all the same');
select * from pgflow.complete_task(check_.id(), 'each', 1, '2');
select check_.is((check_.run()).remaining_steps, 1, 'the last one counts the step');
