-- Queues hold only what waits, so they shall stay as small as that; all else grows with what was done.
SELECT CASE WHEN s.schemaname = 'pgmq' AND s.relname LIKE 'q\_%' THEN 'queues' ELSE 'others' END AS part,
       sum(s.n_dead_tup)::bigint AS dead, sum(pg_table_size(s.relid))::bigint AS table_bytes,
       sum(pg_indexes_size(s.relid))::bigint AS index_bytes
FROM pg_stat_user_tables AS s GROUP BY 1
