SELECT run_id FROM pgflow.start_flow(%(flow)s, %(input)s)
