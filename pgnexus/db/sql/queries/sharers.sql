select agent_id from nexus.sharers(cast(%(limit)s as int)) as agent_id
