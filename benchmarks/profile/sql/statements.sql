-- Nested statements are counted in those that run them, too; is_outer are those that a client sent.
SELECT regexp_replace(s.query, '\s+', ' ', 'g') AS query, s.toplevel AS is_outer, s.calls, s.rows,
       s.total_exec_time AS ms, s.total_plan_time AS plan_ms, s.wal_bytes, s.wal_records, s.wal_fpi,
       s.shared_blks_hit + s.shared_blks_read AS blocks
FROM pg_stat_statements AS s JOIN pg_database AS d ON d.oid = s.dbid
WHERE d.datname = current_database()
ORDER BY s.total_exec_time DESC
