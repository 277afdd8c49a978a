select lane, agent_id from nexus.sharers(cast(%(limit)s as int))
