-- start_flow_with_states and get_run_with_states: {run, steps[]}.
select check_.sequential();
create temporary table got on commit drop as
select pgflow.start_flow_with_states(flow_slug => 'sequential', input => '{"n": 1}', run_id => check_.id()) as started;
select check_.rows($$select k from got, jsonb_object_keys(started) as k order by 1$$, $$values ('run'), ('steps')$$,
  'its keys');
select check_.rows(
  $$select started #>> '{run,run_id}', started #>> '{run,flow_slug}', started #>> '{run,status}', started #> '{run,input}',
      started #> '{run,remaining_steps}', started #> '{run,output}' from got$$,
  format($$values ('%s', 'sequential', 'started', '{"n": 1}'::jsonb, 3, 'null'::jsonb)$$, check_.id()), 'the run');
select check_.rows(
  $$select s ->> 'step_slug', s ->> 'status', s -> 'remaining_tasks', s -> 'initial_tasks', s -> 'remaining_deps', s ->> 'run_id'
    from got, jsonb_array_elements(started -> 'steps') as s order by 1$$,
  format($$values ('first', 'started', '1'::jsonb, '1'::jsonb, '0'::jsonb, '%1$s'),
  ('last', 'created', 'null', '1', '1', '%1$s'),
    ('second', 'created', 'null', '1', '1', '%1$s')$$, check_.id()), 'the steps');
select check_.is(pgflow.get_run_with_states(run_id => check_.id()), started,
  'get_run_with_states says the same') from got;
select check_.complete('first', '{"done": true}');
select check_.is(s -> 'output', '{"done": true}'::jsonb, 'an output')
from jsonb_array_elements(pgflow.get_run_with_states(check_.id()) -> 'steps') as s where s ->> 'step_slug' = 'first';
select check_.ok(pgflow.start_flow_with_states('sequential', '{}') #>> '{run,run_id}' is not null, 'without a run_id');
