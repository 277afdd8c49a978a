-- How much has not ended, on both sides.
select (select count(*) from pgnexus.job_results where finished_at is null)
     + (select count(*) from pgflow.runs where status = 'started')
     + (select coalesce(sum(depth), 0) from nexus_api.queue_metrics()) as n
