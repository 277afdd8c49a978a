ALTER SYSTEM RESET autovacuum_naptime
