select nexus.close_breaker(%(provider)s, %(model)s)
