select provider, model, calls, latency_ms, success_rate, open_for
from nexus_api.standings(%(seconds)s, %(not_the_vendors)s::text[])
