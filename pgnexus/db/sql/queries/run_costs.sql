-- What a run's LLM steps took, one row a step: requests bear the task they are for as job_id, RUN_ID/STEP/....
-- They are looked for among the requests of its time only, for no index names the job.
select split_part(j.job_id, '/', 2) as step, count(*)::int as requests,
       count(*) filter (where j.finished_at is null)::int as open, sum(j.total_tokens)::bigint as tokens,
       sum(j.cost) as cost, count(*) filter (where j.status = 'success' and j.cost is null)::int as unknown_costs
from pgnexus.job_results j
where j.request_id between pgnexus.uuid_floor(%(since)s - interval '10 minutes') and pgnexus.uuid_floor(%(until)s + interval '10 minutes')
  and starts_with(j.job_id, %(run_id)s::text || '/')
group by 1
order by 1
