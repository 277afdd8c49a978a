-- Each record goes to the relation of its first block; commits and the like have none.
WITH records AS MATERIALIZED (
    SELECT w.resource_manager || ' ' || w.record_type AS kind, w.record_length, w.fpi_length,
           substring(w.block_ref FROM 'rel \d+/\d+/(\d+)')::oid AS file,
           substring(w.block_ref FROM 'rel \d+/(\d+)/\d+')::oid AS database
    FROM pg_get_wal_records_info(%(first)s::pg_lsn, %(last)s::pg_lsn) AS w
), files AS (
    SELECT pg_relation_filenode(c.oid) AS file, c.oid::regclass::text AS relation FROM pg_class AS c
    WHERE pg_relation_filenode(c.oid) IS NOT NULL
)
SELECT CASE WHEN r.file IS NULL THEN '(none)' ELSE coalesce(f.relation, '(another)') END AS relation, r.kind,
       count(*) AS records, sum(r.record_length) AS bytes, sum(r.fpi_length) AS fpi_bytes
FROM records AS r
LEFT JOIN files AS f ON f.file = r.file
     AND r.database IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
GROUP BY 1, 2 ORDER BY sum(r.record_length) DESC
