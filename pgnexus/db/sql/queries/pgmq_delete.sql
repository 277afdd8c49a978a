SELECT msg_id FROM pgmq.delete(%(queue)s::text, %(msg_ids)s::bigint[]) AS msg_id
