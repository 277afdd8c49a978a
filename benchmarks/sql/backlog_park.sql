WITH taken AS MATERIALIZED (
    SELECT array_agg(t.run_id) AS runs, array_agg(t.step_slug) AS steps, array_agg(t.attempt) AS attempts,
           array_agg('held'::text) AS scopes, array_agg('standard'::text) AS priorities, array_agg(NULL::text) AS nobody,
           array_agg(false) AS counts
    FROM nexus.take_requests('00000000-0000-4000-8000-000000000001', %(limit)s, %(limit)s) AS t
)
SELECT count(*)::int
FROM taken AS t CROSS JOIN LATERAL nexus.park(
    '00000000-0000-4000-8000-000000000001', t.runs, t.steps, t.attempts, t.scopes, t.priorities, t.nobody, t.nobody,
    t.counts) AS parked
