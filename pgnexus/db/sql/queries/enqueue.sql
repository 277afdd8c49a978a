select ordinal, request_id, status, created from pgnexus.enqueue(%(requests)s::text[]::jsonb[], %(notify)s)
