select nexus.probe_breaker(%(provider)s, %(model)s, %(seconds)s) as granted
