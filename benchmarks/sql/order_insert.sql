INSERT INTO benchmark_orders (note) VALUES (%(note)s)
