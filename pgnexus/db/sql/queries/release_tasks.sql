select run_id, step_slug, task_index
from pgflow.release_tasks(
  %(worker_id)s, cast(%(run_ids)s as uuid[]), cast(%(steps)s as text[]), cast(%(indexes)s as int[]),
  cast(%(attempts)s as int[]), cast(%(delays)s as double precision[]))
