SELECT queue_name FROM pgflow.flows WHERE flow_slug = %(flow)s
