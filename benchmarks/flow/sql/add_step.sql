SELECT pgflow.add_step(%(flow)s, %(step)s, %(deps)s::text[], step_type => %(kind)s)
