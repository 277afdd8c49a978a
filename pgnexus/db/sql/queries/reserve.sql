select nexus.reserve(%(instance_id)s, %(number)s, %(calls)s::json, %(done)s::bigint[], %(lost)s::bigint[])
