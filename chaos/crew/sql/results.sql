select request_id::text, status, finished_at is not null as ended, output ->> 'response' as response
from pgnexus.job_results
