ALTER SYSTEM SET autovacuum_naptime = '1s'
