select t.status = 'started' as running, t.attempts_count as attempts, t.error_message as last_error,
       extract(epoch from nullif(t.not_before, 'infinity') - clock_timestamp())::double precision as next_try_in
from pgflow.step_tasks t
where t.run_id = %(request_id)s and t.status in ('queued', 'started')
