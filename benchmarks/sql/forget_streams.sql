delete from nexus.chunks
