select pgflow.report_progress(
  %(worker_id)s, %(run_id)s, %(step)s, %(task_index)s::int, %(attempt)s::int, %(progress)s::jsonb) as reported
