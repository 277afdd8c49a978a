-- Catalogs only: every role may read them, also one that may not enter the schemas.
SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'pgnexus') AS pgnexus,
       EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = 'pgmq') AS pgmq,
       m.oid IS NOT NULL AS installed,
       obj_description(m.oid, 'pg_class') AS applied
FROM (SELECT 1) AS one
LEFT JOIN (
    pg_class AS m JOIN pg_namespace AS n ON n.oid = m.relnamespace AND n.nspname = 'pgnexus'
) ON m.relname = 'schema_migrations' AND m.relkind = 'r'
