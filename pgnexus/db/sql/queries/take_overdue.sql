select run_id, step_slug, attempt, input, seconds_left from nexus.take_overdue(%(worker_id)s, %(limit)s)
