-- A backend tells of its commits now and then, and when it leaves; so ask when all have left.
SELECT xact_commit AS commits,
       (SELECT count(*) FROM pg_stat_activity AS a
        WHERE a.datname = d.datname AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()) AS clients
FROM pg_stat_database AS d WHERE d.datname = %(database)s
