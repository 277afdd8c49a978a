select outcome, flow_slug, run_id, step_slug, task_index, attempt, input, flow_input, timeout
from pgflow.complete_tasks(
  %(worker_id)s, cast(%(run_ids)s as uuid[]), cast(%(steps)s as text[]), cast(%(indexes)s as int[]),
  cast(%(attempts)s as int[]), cast(%(outputs)s as text[])::jsonb[], cast(%(claim)s as int),
  cast(%(handlers)s as text[]), cast(%(notify)s as boolean), cast(%(then)s as text[])::jsonb[])
