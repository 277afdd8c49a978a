-- A dependent step's condition is over {dep: output} of its completed dependencies, when all of them have ended.
select pgflow.create_flow('f');
select pgflow.add_step('f', 'classify');
select pgflow.add_step('f', 'second');
select pgflow.add_step('f', 'escalate', array['classify'], required_input_pattern => '{"classify": {"level": "high"}}');
select pgflow.add_step('f', 'close', array['classify'], forbidden_input_pattern => '{"classify": {"level": "high"}}');
select pgflow.add_step('f', 'both', array['classify', 'second'], required_input_pattern => '{"second": true}');
select check_.start('f', '{"classify": {"level": "low"}, "second": true}');
select check_.is(check_.statuses(), 'classify:started second:started escalate:created close:created both:created',
  'conditions of dependents wait');
select check_.complete('classify', '{"level": "high", "why": "x"}');
select check_.is(check_.statuses(), 'classify:completed second:started escalate:started close:skipped both:created',
  'by the output, not the run''s input');
select check_.is((check_.state('close')).skip_reason, 'condition_unmet', 'the reason');
select check_.complete('second', 'false');
select check_.is((check_.state('both')).status, 'skipped', 'false is not true');
select check_.complete('escalate', '1');
select check_.is((check_.run()).output, '{"escalate": 1}'::jsonb, 'the run''s output');
