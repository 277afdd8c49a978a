select nexus.leave_probe(%(provider)s, %(model)s)
