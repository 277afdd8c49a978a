select msg_id, reason from nexus.reject_request(%(lane)s, %(worker_id)s)
