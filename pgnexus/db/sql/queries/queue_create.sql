SELECT pgmq.create(%(queue)s)
