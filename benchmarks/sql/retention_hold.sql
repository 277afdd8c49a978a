BEGIN; SELECT count(*) FROM pgnexus.job_results WHERE agent_id IS NULL
