select in_flight, waiting_for_retry, instances, calls, calls_per_second, failed_calls, failures, p50_ms, p95_ms, p99_ms
from nexus_api.activity(make_interval(secs => %(lease)s))
