-- What is wrong after a measurement, counted; all are 0 when every run ended as it should.
SELECT
  (SELECT count(*) FROM pgflow.runs WHERE flow_slug = %(flow)s AND status <> 'completed') AS runs_not_completed,
  (SELECT count(*) FROM pgflow.runs
   WHERE flow_slug = %(flow)s
     AND output IS DISTINCT FROM jsonb_build_object(%(leaf)s::text, input -> %(answer)s)) AS wrong_outputs,
  (SELECT count(*) FROM pgflow.step_states
   WHERE flow_slug = %(flow)s AND status <> 'completed') AS steps_not_completed,
  (SELECT count(*) FROM pgflow.step_states AS map
   JOIN pgflow.step_states AS source ON source.run_id = map.run_id AND source.step_slug = 'spread'
   WHERE map.flow_slug = %(flow)s AND map.step_slug = 'work'
     AND map.output IS DISTINCT FROM source.output) AS wrong_elements,
  (SELECT count(*) FROM pgflow.step_tasks
   WHERE flow_slug = %(flow)s AND (status <> 'completed' OR attempts_count <> 1)) AS tasks_not_done_at_once,
  (SELECT queue_length FROM pgmq.metrics((SELECT queue_name FROM pgflow.flows WHERE flow_slug = %(flow)s))
  ) AS messages_left,
  %(runs)s - (SELECT count(*) FROM pgflow.runs WHERE flow_slug = %(flow)s) AS runs_missing,
  %(steps)s - (SELECT count(*) FROM pgflow.step_tasks WHERE flow_slug = %(flow)s) AS tasks_missing
