select nexus.prune_chunks(make_interval(secs => %(ttl)s), %(limit)s) as pruned
