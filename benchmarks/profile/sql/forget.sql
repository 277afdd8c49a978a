-- The statements that were counted of this database until now.
SELECT pg_stat_statements_reset(0, d.oid, 0), pg_current_wal_insert_lsn()::text AS lsn
FROM pg_database AS d WHERE d.datname = current_database()
