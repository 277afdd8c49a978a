select nexus_api.watch(make_interval(secs => %(lease)s), make_interval(secs => %(window)s)) as seen
