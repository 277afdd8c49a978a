WITH stored AS (
    INSERT INTO benchmark_answers (msg_id, answer)
    SELECT id, answer FROM unnest(%(ids)s::bigint[], %(answers)s::text[]::jsonb[]) AS a (id, answer)
), deleted AS (
    SELECT pgmq.delete('benchmark', %(ids)s::bigint[])
)
SELECT (SELECT count(*) FROM deleted), pg_notify('benchmark_done', array_to_string(%(ids)s::bigint[], ','))
