select outcome, run_id, step_slug, task_index
from pgflow.fail_tasks(
  %(worker_id)s, cast(%(run_ids)s as uuid[]), cast(%(steps)s as text[]), cast(%(indexes)s as int[]),
  cast(%(attempts)s as int[]), cast(%(errors)s as text[]), cast(%(final)s as boolean[]),
  cast(%(delays)s as double precision[]), cast(%(notify)s as boolean))
