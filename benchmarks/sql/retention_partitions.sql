select pgnexus.ensure_partitions(now() - interval '4 months', 4)
