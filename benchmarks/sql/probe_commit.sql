INSERT INTO benchmark_probe VALUES (clock_timestamp())
