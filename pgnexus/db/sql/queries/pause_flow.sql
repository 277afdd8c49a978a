select pgflow.pause_flow(%(flow)s)
