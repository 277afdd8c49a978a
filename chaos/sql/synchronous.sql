select pid from pg_stat_replication where sync_state = 'sync'
