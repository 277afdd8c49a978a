select run_id, step_slug, attempt, input, seconds_left, waited
from nexus.take_requests(%(worker_id)s, %(limit)s, %(others)s)
