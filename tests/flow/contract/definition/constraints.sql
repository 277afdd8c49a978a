-- What the tables refuse, by the names of their constraints.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'a');
select check_.violates($$select pgflow.add_step('nowhere', 'a')$$, 'steps_flow_slug_fkey', 'a step of an unknown flow');
select check_.violates($$select pgflow.add_step('f', 'b', step_type => 'many')$$, 'steps_step_type_check',
  'a step type');
select check_.violates(
  $$insert into pgflow.steps (flow_slug, step_slug, step_index) values ('f', 'twin', 0)$$,
  'steps_flow_slug_step_index_key', 'two steps with one index');
select check_.violates($$select pgflow.add_step('f', 'b', start_delay => -1)$$, 'opt_start_delay_is_nonnegative',
  'start_delay -1');
select check_.is((pgflow.add_step('f', 'at_once', start_delay => 0)).opt_start_delay, 0, 'start_delay 0');
select check_.violates(
  format('select pgflow.add_step(%L, %L, required_input_pattern => %L)', 'f', 'b', pattern),
  'required_input_pattern_is_object', 'required_input_pattern ' || pattern)
from unnest(array['[]', '1', '"x"', 'null', 'true']) as pattern;
select check_.violates(
  format('select pgflow.add_step(%L, %L, forbidden_input_pattern => %L)', 'f', 'b', pattern),
  'forbidden_input_pattern_is_object', 'forbidden_input_pattern ' || pattern)
from unnest(array['[]', '1', '"x"', 'null', 'true']) as pattern;
select check_.is((pgflow.add_step('f', 'any', required_input_pattern => '{}',
  forbidden_input_pattern => '{}')).required_input_pattern,
  '{}'::jsonb, 'an empty object is a pattern');
select check_.violates($$select pgflow.add_step('f', 'b', when_unmet => 'ignore')$$, 'when_unmet_is_valid',
  'when_unmet');
select check_.violates($$select pgflow.add_step('f', 'b', when_exhausted => 'retry')$$, 'when_exhausted_is_valid',
  'when_exhausted');
select check_.violates($$select pgflow.add_step('f', 'b', array['b'])$$, 'deps_check', 'a step that depends on itself');
select check_.violates(
  $$select pgflow.add_step('f', 'b', array['unknown'])$$, 'deps_flow_slug_dep_slug_fkey', 'an unknown dependency');
select check_.throws($$select pgflow.create_flow('g', max_attempts => -1)$$, '23514', null, 'max_attempts -1');
select check_.throws($$select pgflow.create_flow('g', base_delay => -1)$$, '23514', null, 'base_delay -1');
select check_.throws($$select pgflow.create_flow('g', timeout => 0)$$, '23514', null, 'timeout 0');
select check_.rows(
  $$select step_slug from pgflow.steps where flow_slug = 'f' order by step_index$$,
  $$values ('a'), ('at_once'), ('any')$$, 'nothing of what was refused is there');
