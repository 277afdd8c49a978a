select nexus_api.cancel(%(request_ids)s::uuid[])
