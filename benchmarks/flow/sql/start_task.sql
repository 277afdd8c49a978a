SELECT run_id, step_slug, task_index, input, flow_input FROM pgflow.start_tasks(%(flow)s, %(messages)s, %(worker)s)
