select run_id, step_slug, task_index, attempts_count as attempt from pgflow.step_tasks
where last_worker_id = %(worker_id)s and status = 'started' and deferred_until is null
