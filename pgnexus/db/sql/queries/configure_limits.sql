select nexus.configure_limits(%(instance_id)s, %(limits)s::text::jsonb)
