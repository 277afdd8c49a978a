select pgflow.heartbeat(
  %(worker_id)s, %(queue_name)s, %(function_name)s, make_interval(secs => %(lease)s)) as revived
