SELECT msg_id, message::text AS job FROM pgmq.read('benchmark', 60, %(limit)s)
