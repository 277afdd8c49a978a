select flow_slug, queue_name, created from pgflow.register_built_flow(%(shape)s::jsonb, %(definition)s::jsonb)
