select flow_slug, queue_name, created
from pgflow.compile_flow(%(name)s, %(shape)s::jsonb, %(definition)s::jsonb)
