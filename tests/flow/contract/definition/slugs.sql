-- Slugs: at most 128 characters, ^[a-zA-Z_][a-zA-Z0-9_]*$, not run.
select check_.is((pgflow.create_flow(slug)).flow_slug, slug, 'a legal flow slug')
from unnest(array['a', '_', '_a1', 'A', 'camelCase', 'with_underscore', 'a1', 'running', 'RUN',
  'run_', repeat('x', 128)]) as slug;
select check_.violates(format('select pgflow.create_flow(%L)', slug), 'slug_is_valid', 'the flow slug "' || slug || '"')
from unnest(array['', 'run', '1a', '1', 'with-dash', 'with space', 'a.b', 'a$', 'é', E'a\n',
  'a''b', repeat('x', 129)]) as slug;

select pgflow.create_flow('steps_of');
select check_.is((pgflow.add_step('steps_of', slug)).step_slug, slug, 'a legal step slug')
from unnest(array['a', '_', '_a1', 'A', 'camelCase', 'with_underscore', 'RUN', 'run_', repeat('x', 128)]) as slug;
select check_.violates(
  format('select pgflow.add_step(%L, %L)', 'steps_of', slug), 'steps_step_slug_check', 'the step slug "' || slug || '"')
from unnest(array['', 'run', '1a', 'with-dash', 'with space', 'a.b', 'é', E'a\n', repeat('x', 129)]) as slug;
select check_.violates(
  $$insert into pgflow.flows (flow_slug) values ('not-a-slug')$$, 'slug_is_valid', 'the table refuses a bad slug, too');

-- slugs that differ only in case are different slugs
select check_.is(count(*), 2, 'steps a and A') from pgflow.steps where flow_slug = 'steps_of' and
  step_slug in ('a', 'A');
select check_.is(count(*), 2, 'flows a and A') from pgflow.flows where flow_slug in ('a', 'A');
-- a step is identified by flow and step together
select check_.is((pgflow.add_step('a', 'camelCase')).step_index, 0, 'the same step slug in another flow');
