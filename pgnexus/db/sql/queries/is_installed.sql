select current_database() as database, to_regclass('pgnexus.installation') is not null as installed
