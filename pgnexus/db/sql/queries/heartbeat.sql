select pgflow.heartbeat(%(worker_id)s, %(queue_name)s, %(function_name)s) as revived
