select pgnexus.ensure_partitions(now() - interval '3 months', 3)
