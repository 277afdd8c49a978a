SELECT msg_id
FROM pgmq.send_batch(
    %(queue)s::text, %(messages)s::jsonb[], %(headers)s::jsonb[], clock_timestamp() + %(delay)s::interval
) AS msg_id
