select request_id from pgnexus.cancel(%(request_ids)s::uuid[]) as request_id
