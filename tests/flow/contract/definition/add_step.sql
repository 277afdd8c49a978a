-- add_step: defaults, options, indexes, dependencies; adding again returns the old row.
select pgflow.create_flow('f');
select check_.rows(
  $$select flow_slug, step_slug, step_type, step_index, deps_count, opt_max_attempts, opt_base_delay, opt_timeout,
      opt_start_delay, required_input_pattern, forbidden_input_pattern, when_unmet, when_exhausted
    from pgflow.add_step('f', 'a')$$,
  $$values ('f', 'a', 'single', 0, 0, null::int, null::int, null::int, null::int, null::jsonb, null::jsonb, 'skip',
  'fail')$$,
  'the defaults');
select check_.rows(
  $$select flow_slug, step_slug, step_type, step_index, deps_count, opt_max_attempts, opt_base_delay, opt_timeout,
      opt_start_delay, required_input_pattern, forbidden_input_pattern, when_unmet, when_exhausted
    from pgflow.add_step(flow_slug => 'f', step_slug => 'b', deps_slugs => array['a'], max_attempts => 2,
      base_delay => 3, timeout => 4, start_delay => 5, step_type => 'map', required_input_pattern => '{"x": 1}',
      forbidden_input_pattern => '{"y": {"z": null}}', when_unmet => 'fail', when_exhausted => 'skip-cascade')$$,
  $$values ('f', 'b', 'map', 1, 1, 2, 3, 4, 5, '{"x": 1}'::jsonb, '{"y": {"z": null}}'::jsonb, 'fail',
  'skip-cascade')$$,
  'all options');
select check_.rows(
  $$select step_index, deps_count from pgflow.add_step('f', 'c', array['a', 'b'])$$, $$values (2, 2)$$,
  'two dependencies');
select check_.rows(
  $$select dep_slug, step_slug from pgflow.deps where flow_slug = 'f' order by step_slug, dep_slug$$,
  $$values ('a', 'b'), ('a', 'c'), ('b', 'c')$$, 'deps: parent and child');
select check_.is(pg_typeof(created_at)::text, 'timestamp with time zone', 'created_at of deps')
from pgflow.deps where flow_slug = 'f' and step_slug = 'b';
select check_.due(created_at, '0', 'created_at of steps') from pgflow.steps where flow_slug = 'f' and step_slug = 'b';

-- again
select check_.rows(
  $$select step_slug, step_type, step_index, deps_count, opt_max_attempts, opt_base_delay, opt_timeout, opt_start_delay,
      when_unmet, when_exhausted
    from pgflow.add_step('f', 'b', array['a'], max_attempts => 9, timeout => 9, step_type => 'single',
      when_unmet => 'skip')$$,
  $$values ('b', 'map', 1, 1, 2, 3, 4, 5, 'fail', 'skip-cascade')$$, 'adding again returns the old row');
select check_.is(count(*), 3, 'and adds no step') from pgflow.steps where flow_slug = 'f';
select check_.is((pgflow.add_step('f', 'd')).step_index, 3, 'the next index after adding one again');
-- step_index = max + 1, also after a gap
update pgflow.steps set step_index = 10 where flow_slug = 'f' and step_slug = 'd';
select check_.is((pgflow.add_step('f', 'e')).step_index, 11, 'max + 1');
-- each flow counts for itself
select pgflow.create_flow('g');
select check_.is((pgflow.add_step('g', 'a')).step_index, 0, 'another flow begins at 0');
-- skip modes
select check_.is((pgflow.add_step('g', 'u_' || replace(mode, '-', '_'), when_unmet => mode)).when_unmet, mode,
  'when_unmet ' || mode)
from unnest(array['fail', 'skip', 'skip-cascade']) as mode;
select check_.is((pgflow.add_step('g', 'e_' || replace(mode, '-', '_'), when_exhausted => mode)).when_exhausted, mode,
  'when_exhausted ' || mode)
from unnest(array['fail', 'skip', 'skip-cascade']) as mode;
-- a map with one dependency, or none
select check_.is((pgflow.add_step('g', 'root_map', step_type => 'map')).deps_count, 0, 'a root map');
select check_.is((pgflow.add_step('g', 'child_map', array['root_map'], step_type => 'map')).deps_count, 1,
  'a map of a map');
