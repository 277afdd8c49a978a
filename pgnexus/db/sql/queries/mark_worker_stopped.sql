select pgflow.mark_worker_stopped(%(worker_id)s)
