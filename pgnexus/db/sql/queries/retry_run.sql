select pgflow.retry_run(%(run_id)s) as retried
