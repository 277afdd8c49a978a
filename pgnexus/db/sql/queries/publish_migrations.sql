-- The table's comment says the same as the table, to roles that may not read it.
DO $$
BEGIN
    EXECUTE format(
        'COMMENT ON TABLE pgnexus.schema_migrations IS %L',
        (SELECT string_agg(name || ' ' || checksum, ', ' ORDER BY number) FROM pgnexus.schema_migrations)
    );
END
$$
