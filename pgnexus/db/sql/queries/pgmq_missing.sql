SELECT format('pgmq.%s(%s)', wanted.name, wanted.arguments) AS signature
FROM (VALUES
    ('create', 'text'),
    ('list_queues', ''),
    ('metrics', 'text'),
    ('send', 'text, jsonb, jsonb, timestamp with time zone'),
    ('send_batch', 'text, jsonb[]'),
    ('send_batch', 'text, jsonb[], jsonb[], timestamp with time zone'),
    ('read', 'text, integer, integer, jsonb'),
    ('pop', 'text, integer'),
    ('delete', 'text, bigint[]'),
    ('archive', 'text, bigint[]'),
    ('set_vt', 'text, bigint[], timestamp with time zone')
) AS wanted (name, arguments)
WHERE NOT EXISTS (
    SELECT 1
    FROM pg_proc AS p
    JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = 'pgmq' AND p.proname = wanted.name AND oidvectortypes(p.proargtypes) = wanted.arguments
)
ORDER BY 1
