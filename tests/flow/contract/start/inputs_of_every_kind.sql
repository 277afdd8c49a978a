-- A run's input may be any JSON, falsy or not; only SQL NULL is none.
select check_.sequential();
select check_.is(input, given::jsonb, 'input ' || given)
from unnest(array['0', 'false', '""', 'null', '[]', '{}', '"text"', '[1, 2]', '{"a": null}', '1.50']) as given,
  lateral pgflow.start_flow('sequential', given::jsonb);
select check_.throws($$select * from pgflow.start_flow('sequential', null)$$, '23502', null, 'input is not null');
