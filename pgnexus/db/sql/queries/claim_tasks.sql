select outcome, flow_slug, run_id, step_slug, task_index, attempt, input, flow_input, timeout
from pgflow.claim_tasks(
  cast(%(queues)s as text[]), %(worker_id)s, cast(%(limit)s as int), cast(%(handlers)s as text[]))
