SELECT count(*) FROM pgnexus.job_results WHERE status = 'success'
