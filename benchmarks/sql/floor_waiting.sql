SELECT count(*) FROM pgmq.q_benchmark
