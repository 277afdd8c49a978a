-- A map is one step: started once with all its tasks, completed once with the whole array.
select check_.listen();
select check_.fan();
select check_.start('fan');
select check_.complete('list', '[1, 2, 3]');
select check_.is(check_.payload('step:each:started'), jsonb_build_object(
  'event_type', 'step:started', 'run_id', check_.id(), 'status', 'started', 'step_slug', 'each',
  'started_at', (check_.state('each')).started_at, 'remaining_tasks', 3, 'remaining_deps', 0), 'step:started');
select check_.complete('each', '"c"', 2);
select check_.complete('each', null, 0);
select check_.is(check_.events(), 'run:started step:list:started step:list:completed step:each:started',
  'tasks are no events');
select check_.complete('each', '"b"', 1);
select check_.is(check_.payload('step:each:completed') -> 'output', '[null, "b", "c"]'::jsonb, 'the whole output');
select check_.complete('total', 'null');
select check_.is(check_.payload('run:completed') -> 'output', '{"total": null}'::jsonb, 'the run''s output');
select check_.is(check_.events(),
  'run:started step:list:started step:list:completed step:each:started step:each:completed step:total:started '
  'step:total:completed run:completed', 'the whole');
