select nexus_api.live_instances() as instances
