SELECT msg_id, read_ct, enqueued_at, vt, message, headers
FROM pgmq.read(%(queue)s::text, %(vt)s::int, %(qty)s::int)
