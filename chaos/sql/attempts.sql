select * from nexus.attempts
