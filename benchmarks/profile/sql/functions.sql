-- self is without the functions that it calls, and with the statements that it runs.
SELECT schemaname || '.' || funcname AS function, calls, total_time AS ms, self_time AS self_ms
FROM pg_stat_user_functions ORDER BY self_time DESC
