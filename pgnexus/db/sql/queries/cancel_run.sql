select pgflow.cancel_run(%(run_id)s) as cancelled
