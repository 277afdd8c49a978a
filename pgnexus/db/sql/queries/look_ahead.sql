select lane, last, seen, agent_id, msg_ids from nexus.look_ahead(cast(%(after)s as jsonb), cast(%(limit)s as int))
