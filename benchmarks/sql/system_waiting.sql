-- As many have to be on the lane as are stored and wait; the latter are counted.
SELECT least((SELECT count(*) FROM pgnexus.job_results WHERE status = 'enqueued'),
             (SELECT count(*) FROM pgmq.q_ai_requests)) AS waiting
