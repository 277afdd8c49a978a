CREATE TABLE pgnexus.schema_migrations (
    number int PRIMARY KEY CHECK (number > 0),
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    pgnexus_version text NOT NULL
)
