select nexus.prune_limits()
