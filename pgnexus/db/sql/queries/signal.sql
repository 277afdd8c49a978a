select pgflow.signal(%(run_id)s, %(step)s, %(payload)s::jsonb, %(task_index)s::int)
