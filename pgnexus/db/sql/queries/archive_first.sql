select nexus.archive_first(%(lane)s, %(reason)s) as msg_id
