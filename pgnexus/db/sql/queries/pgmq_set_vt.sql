SELECT msg_id
FROM pgmq.set_vt(%(queue)s::text, %(msg_ids)s::bigint[], clock_timestamp() + %(delay)s::interval)
