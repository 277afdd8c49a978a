select nexus.reject_request(%(lane)s, %(reason)s) as msg_id
