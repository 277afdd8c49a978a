-- Answers that were stored, and of which the books know no call.
select j.request_id::text
from pgnexus.job_results j
where j.status = 'success'
  and not exists (select from nexus.attempts a where a.request_id = j.request_id and a.outcome = 'success')
