SELECT msg_id FROM pgmq.archive(%(queue)s::text, %(msg_ids)s::bigint[]) AS msg_id
