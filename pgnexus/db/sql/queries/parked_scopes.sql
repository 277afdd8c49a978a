select scope from nexus.parked_scopes(%(after)s, cast(%(limit)s as int)) as scope
