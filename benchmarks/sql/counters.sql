-- Both are exact at once, for the whole server; xids are given to transactions that write, or NOTIFY.
SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS writes,
       (pg_current_wal_insert_lsn() - '0/0')::bigint AS wal
