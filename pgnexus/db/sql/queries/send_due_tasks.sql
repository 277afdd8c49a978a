select sent, next_in from pgflow.send_due_tasks()
