SELECT nexus_api.create_queue(%(queue)s)
