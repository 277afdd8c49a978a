select nexus.divert(%(worker_id)s, %(lane)s, cast(%(msg_ids)s as bigint[])) as parked
