select run_id from nexus.settle(%(worker_id)s, %(items)s::text[]::jsonb[], %(notify)s) as run_id
