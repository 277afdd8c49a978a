select pgnexus.ensure_partitions() as made
