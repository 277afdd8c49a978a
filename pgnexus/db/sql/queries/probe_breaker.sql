select nexus.probe_breaker(%(instance_id)s, %(provider)s, %(model)s, %(seconds)s) as granted
