select worker_id::text, last_heartbeat_at from pgflow.workers
