INSERT INTO pgnexus.schema_migrations (number, name, checksum, pgnexus_version)
VALUES (%(number)s, %(name)s, %(checksum)s, %(version)s)
