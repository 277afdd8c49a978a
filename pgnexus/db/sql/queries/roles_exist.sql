SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname IN ('pgnexus_caller', 'pgnexus_nexus')) AS found
