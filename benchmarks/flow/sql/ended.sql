SELECT count(*) FILTER (WHERE status <> 'started') AS ended, count(*) FILTER (WHERE status = 'failed') AS failed
FROM pgflow.runs WHERE flow_slug = %(flow)s
