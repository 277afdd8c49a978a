-- A job that is done twice has one answer. As the floor does, one NOTIFY a transaction names what is there.
WITH stored AS (
    INSERT INTO peer_answers (number, answer)
    SELECT number, answer FROM unnest(%(numbers)s::bigint[], %(answers)s::text[]::jsonb[]) AS a (number, answer)
    ON CONFLICT (number) DO NOTHING
)
SELECT pg_notify('peer_done', array_to_string(%(numbers)s::bigint[], ','))
