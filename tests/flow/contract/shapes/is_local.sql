-- is_local() is false unless a setting says so; where it is true, another shape is recompiled without being asked.
select check_.is(pgflow.is_local(), false, 'the default');
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
create temporary table shape on commit drop as select pgflow._get_flow_shape('f') as shape;
select pgflow.add_step('f', 'b');
select check_.is(pgflow.ensure_flow_compiled('f', shape) ->> 'status', 'mismatch', 'where it is false') from shape;
set local pgflow.is_local = 'on';
select check_.is(pgflow.is_local(), true, 'with the setting');
select check_.is(pgflow.ensure_flow_compiled('f', shape) ->> 'status', 'recompiled', 'where it is true') from shape;
select check_.rows($$select step_slug from pgflow.steps where flow_slug = 'f'$$, $$values ('a')$$, 'the steps');
select check_.is(pgflow.ensure_flow_compiled('f', shape) ->> 'status', 'verified', 'again') from shape;
set local pgflow.is_local = 'off';
select check_.is(pgflow.is_local(), false, 'off again');
