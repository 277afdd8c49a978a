select worker_id::text, function_name, started_at, last_heartbeat_at, lease, now()
from pgflow.workers where stopped_at is null
