SELECT count(*) FROM pgflow.start_flows(%(flow)s, %(inputs)s::text[]::jsonb[])
