-- The newest version of a name, or the flow of this slug, one row a step in the order of their definition. With
-- `exact` it is the slug.
select f.flow_slug, coalesce(f.definition ->> 'name', f.name, f.flow_slug) as name, f.version, f.paused_at, f.created_at,
       coalesce(f.queue_name = 'pgflow_built', false) as built, f.definition, f.opt_max_attempts as flow_max_attempts, f.opt_base_delay as flow_base_delay,
       f.opt_timeout as flow_timeout,
       (select count(*)::int from pgflow.flows o where coalesce(o.name, o.flow_slug) = coalesce(f.name, f.flow_slug)) as versions,
       s.step_slug, s.step_type, s.opt_max_attempts, s.opt_base_delay, s.opt_timeout, s.opt_start_delay,
       s.required_input_pattern, s.forbidden_input_pattern, s.when_unmet, s.when_exhausted, s.handler,
       array(select d.dep_slug from pgflow.deps d join pgflow.steps p on p.flow_slug = d.flow_slug and p.step_slug = d.dep_slug
             where d.flow_slug = s.flow_slug and d.step_slug = s.step_slug order by p.step_index) as depends_on
from pgflow.flows f
left join pgflow.steps s on s.flow_slug = f.flow_slug
where f.flow_slug = case when %(exact)s then %(flow)s else coalesce(
  pgflow.newest_version(%(flow)s),
  (select b.flow_slug from pgflow.flows b where b.queue_name = 'pgflow_built' and b.definition ->> 'name' = %(flow)s
   order by b.created_at desc limit 1)) end
order by s.step_index
