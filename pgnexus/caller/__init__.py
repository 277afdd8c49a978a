"""The caller side: holds no provider keys, knows the nexus side only by its queues."""
