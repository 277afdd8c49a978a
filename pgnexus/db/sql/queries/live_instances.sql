select nexus_api.live_instances(make_interval(secs => %(lease)s)) as instances
