-- A worker that gives its next sign of life tomorrow.
SELECT pgflow.heartbeat('00000000-0000-4000-8000-000000000001', 'llm_request_workflow', 'benchmark', interval '2 days')
