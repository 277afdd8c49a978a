select run_id, created
from pgflow.start_flows(
  %(flow)s, cast(%(inputs)s as text[])::jsonb[], cast(%(run_ids)s as uuid[]), cast(%(notify)s as boolean),
  p_exact => cast(%(exact)s as boolean))
