WITH sent AS (
    SELECT id FROM pgmq.send_batch('benchmark', %(jobs)s::text[]::jsonb[]) AS id
)
SELECT array_agg(id) AS ids, (SELECT pg_notify('benchmark_jobs', '')) FROM sent
