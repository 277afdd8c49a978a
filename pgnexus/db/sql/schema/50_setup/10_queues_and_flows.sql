-- What both sides need from the first moment: the queues, and the definition of LLMRequestWorkflow. How often it tries
-- is the nexus's setting max_attempts, of which this is the highest value.

select pgmq.create(q) from unnest('{ai_requests_interactive,ai_requests,ai_requests_batch,ai_results}'::text[]) as q;
-- pgmq reads in the order of msg_id; nobody looks for a time, and every message pays for the index
drop index if exists pgmq.q_ai_requests_interactive_vt_idx, pgmq.q_ai_requests_vt_idx, pgmq.q_ai_requests_batch_vt_idx,
  pgmq.q_ai_results_vt_idx;

select pgflow.create_flow('llm_request_workflow', max_attempts => 100, base_delay => 2, timeout => 3600);
select pgflow.add_step('llm_request_workflow', 'validate');
select pgflow.add_step('llm_request_workflow', 'route_llm', '{validate}');
select pgflow.add_step('llm_request_workflow', 'publish_result', '{route_llm}');
select pgflow.add_step('llm_request_workflow', 'track_metrics', '{publish_result}');
