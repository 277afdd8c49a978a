select nexus.leave_probe(%(instance_id)s, %(provider)s, %(model)s)
