select nexus.open_breaker(%(provider)s, %(model)s, %(reason)s, %(seconds)s)
