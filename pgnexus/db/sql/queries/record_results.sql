select request_id, result from pgnexus.record_results(%(results)s::text[]::jsonb[], %(notify)s)
