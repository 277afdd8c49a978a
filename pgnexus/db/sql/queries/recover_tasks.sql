select flow_slug, run_id, step_slug, task_index, exhausted from pgflow.recover_tasks()
