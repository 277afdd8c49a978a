select sent, next_in from pgflow.send_due_tasks(cast(%(limit)s as int))
