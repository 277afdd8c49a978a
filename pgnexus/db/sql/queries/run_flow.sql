select flow_slug as flow from pgflow.runs where run_id = %(run_id)s
