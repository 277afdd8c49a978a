SELECT name FROM pg_available_extensions WHERE name IN ('pg_stat_statements', 'pg_walinspect')
