select taken, request_id, result from pgnexus.collect_results(%(queue)s, %(limit)s, %(notify)s, %(wanted)s::uuid[])
