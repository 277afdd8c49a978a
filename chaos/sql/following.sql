select pid from pg_stat_replication where state = 'streaming'
