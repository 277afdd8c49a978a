select sent, next_in from pgflow.send_due(%(flow_slug)s)
