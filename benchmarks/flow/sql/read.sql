SELECT msg_id FROM pgmq.read(%(queue)s, 60, %(limit)s)
