select input from pgflow.runs where run_id = %(run_id)s
