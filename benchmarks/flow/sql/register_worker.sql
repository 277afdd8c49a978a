INSERT INTO pgflow.workers (worker_id, queue_name, function_name) VALUES (%(worker)s, %(queue)s, 'benchmark')
