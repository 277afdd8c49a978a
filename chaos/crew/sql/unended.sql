select count(*) as n from pgnexus.job_results where finished_at is null
