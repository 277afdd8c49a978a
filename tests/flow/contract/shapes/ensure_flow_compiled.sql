-- ensure_flow_compiled: compiled, verified, mismatch, recompiled.
create function pg_temp.shape(slug text, options jsonb default '{}') returns jsonb language sql as $$
  select jsonb_build_object('options', options, 'steps', jsonb_build_array(jsonb_build_object(
    'slug', slug, 'stepType', 'single', 'dependencies', '[]'::jsonb, 'whenUnmet', 'skip', 'whenExhausted', 'fail',
    'requiredInputPattern', '{"defined": false}'::jsonb, 'forbiddenInputPattern', '{"defined": false}'::jsonb)))
$$;
select check_.is(pgflow.ensure_flow_compiled(flow_slug => 'f', shape => pg_temp.shape('b', '{"maxAttempts": 4}')),
  '{"status": "compiled", "differences": []}'::jsonb, 'a new flow');
select check_.is((select opt_max_attempts from pgflow.flows where flow_slug = 'f'), 4, 'options are applied');
select check_.ok(to_regclass('pgmq.q_f') is not null, 'its queue');
select check_.is(pgflow.ensure_flow_compiled('f', pg_temp.shape('b', '{"maxAttempts": 4}')),
  '{"status": "verified", "differences": []}'::jsonb, 'the same again');
select check_.is(pgflow.ensure_flow_compiled('f', pg_temp.shape('b', '{"maxAttempts": 8}')),
  '{"status": "verified", "differences": []}'::jsonb, 'other options are no difference');
select check_.start('f');
select check_.is(pgflow.ensure_flow_compiled(flow_slug => 'f', shape => pg_temp.shape('a'), allow_data_loss => false),
  jsonb_build_object('status', 'mismatch',
  'differences', jsonb_build_array('Step at index 0: slug differs ''a'' vs ''b''')), 'another shape');
select check_.is(pgflow.ensure_flow_compiled('f', pg_temp.shape('a')) ->> 'status', 'mismatch',
  'data loss is not the default');
select check_.is(check_.statuses(), 'b:started', 'nothing was changed');
select check_.rows($$select step_slug from pgflow.steps where flow_slug = 'f'$$, $$values ('b')$$, 'nor the steps');
select check_.is(pgflow.ensure_flow_compiled('f', pg_temp.shape('b'), allow_data_loss => true) ->> 'status', 'verified',
  'no data is lost where nothing differs');
select check_.is(check_.statuses(), 'b:started', 'the run is there');
create temporary table got on commit drop as
select pgflow.ensure_flow_compiled('f', pg_temp.shape('a', '{"timeout": 17}'), allow_data_loss => true) as result;
select check_.is(result ->> 'status', 'recompiled', 'data may be lost') from got;
select check_.is(jsonb_typeof(result -> 'differences'), 'array', 'differences of a recompiled flow') from got;
select check_.rows($$select step_slug from pgflow.steps where flow_slug = 'f'$$, $$values ('a')$$, 'the new step');
select check_.is((select opt_timeout from pgflow.flows where flow_slug = 'f'), 17, 'the new options');
select check_.empty($$select * from pgflow.runs where flow_slug = 'f'$$, 'its runs are gone');
select check_.empty($$select * from pgflow.step_states where flow_slug = 'f'$$, 'with their states');
select check_.is(check_.queued('f') + check_.archived('f'), 0, 'and messages');
select check_.is(pgflow.ensure_flow_compiled('f', pg_temp.shape('a')) ->> 'status', 'verified', 'now it is this one');
select check_.start('f');
select check_.complete('a', '1');
select check_.is((check_.run()).status, 'completed', 'and runs');
