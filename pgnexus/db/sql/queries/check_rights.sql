select current_user as role, has_schema_privilege('pgnexus', 'usage') as caller,
       has_schema_privilege('nexus', 'usage') as nexus
