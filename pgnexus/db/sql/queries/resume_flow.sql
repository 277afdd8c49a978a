select pgflow.resume_flow(%(flow)s)
