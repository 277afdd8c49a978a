SELECT pgflow.create_flow(%(flow)s)
