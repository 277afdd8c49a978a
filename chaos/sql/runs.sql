-- Every run of a flow that callers start, with what its steps failed of.
select r.run_id, r.status, r.cancelled_at is not null as cancelled, r.output,
       (select string_agg(s.error_message, '; ') from pgflow.step_states s where s.run_id = r.run_id) as error,
       (select count(*) from chaos.bookings b where b.run_id = r.run_id) as bookings
from pgflow.runs r where r.flow_slug <> 'llm_request_workflow'
