SELECT name, current_setting(name) AS setting
FROM unnest('{server_version,fsync,synchronous_commit,full_page_writes,wal_compression,shared_buffers,max_wal_size,autovacuum,wal_level}'::text[]) AS name
