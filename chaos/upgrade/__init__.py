"""Two versions of pgnexus side by side while the database under them is migrated."""
