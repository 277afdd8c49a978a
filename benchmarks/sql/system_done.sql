-- Also those that nobody has taken off the queue of results yet.
SELECT (SELECT count(*) FROM pgnexus.job_results WHERE status = 'success')
       + (SELECT count(*) FROM pgmq.q_ai_results WHERE message ->> 'status' = 'success')
