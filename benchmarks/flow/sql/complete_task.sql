SELECT status FROM pgflow.complete_task(%(run)s, %(step)s, %(index)s, %(output)s)
