select run_id, exhausted from pgflow.recover_tasks(make_interval(secs => %(lease)s))
