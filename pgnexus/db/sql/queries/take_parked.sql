select run_id, step_slug, attempt, input, seconds_left, agent_id
from nexus.take_parked(%(worker_id)s, %(scope)s, %(limit)s, %(others)s, %(after)s)
