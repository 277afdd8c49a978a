SELECT outcome, run_id, step_slug, task_index, attempt, input, flow_input
FROM pgflow.claim_tasks(%(queues)s::text[], %(worker)s, %(limit)s)
