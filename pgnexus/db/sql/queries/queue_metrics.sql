select queue, depth, ready, oldest_seconds, archived from nexus_api.queue_metrics()
