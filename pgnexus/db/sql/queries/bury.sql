select instance_id, calls from nexus.bury()
