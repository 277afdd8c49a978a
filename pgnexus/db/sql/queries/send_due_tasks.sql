select pgflow.send_due(%(flow_slug)s) as next_in
