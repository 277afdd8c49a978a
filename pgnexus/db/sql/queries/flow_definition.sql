select name, definition, queue_name from pgflow.flows where flow_slug = %(flow)s
