SELECT outcome, run_id, step_slug, task_index, attempt, input, flow_input
FROM pgflow.complete_tasks(%(worker)s, %(runs)s::uuid[], %(steps)s::text[], %(indexes)s::int[], %(attempts)s::int[],
                           %(outputs)s::text[]::jsonb[], p_claim => %(claim)s)
