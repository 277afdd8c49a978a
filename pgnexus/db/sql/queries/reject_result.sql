select pgnexus.reject_result(%(queue)s, %(reason)s) as msg_id
