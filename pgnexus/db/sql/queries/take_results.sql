select taken, request_id, result from pgnexus.take_results(%(queue)s, %(limit)s, %(notify)s)
