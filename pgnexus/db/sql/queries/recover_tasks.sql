select run_id, exhausted from pgflow.recover_tasks()
