select msg_id, reason from pgnexus.reject_result(%(queue)s)
