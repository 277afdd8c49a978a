SELECT count(*) FROM benchmark_answers
