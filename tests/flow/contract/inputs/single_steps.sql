-- Inputs of single steps: {} for roots, with the run's input as flow_input; {dep: output} for the others, flow_input NULL.
select check_.diamond();
select check_.start('diamond', '{"q": "x"}');
select check_.rows($$select step_slug, input, flow_input from check_.claim('diamond')$$,
  $$values ('top', '{}'::jsonb, '{"q": "x"}'::jsonb)$$, 'a root');
select check_.complete('top', '{"t": [1]}');
select check_.rows($$select step_slug, input, flow_input from check_.claim('diamond') order by 1$$,
  $$values ('left', '{"top": {"t": [1]}}'::jsonb, null::jsonb), ('right', '{"top": {"t": [1]}}', null)$$,
  'one dependency');
select check_.complete('left', '"L"');
select check_.empty($$select * from check_.claim('diamond')$$, 'bottom waits for both');
select check_.complete('right', '"R"');
select check_.rows($$select step_slug, input, flow_input from check_.claim('diamond')$$,
  $$values ('bottom', '{"left": "L", "right": "R"}'::jsonb, null::jsonb)$$, 'two dependencies, not the grandparent');
