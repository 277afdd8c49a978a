-- A failure with attempts left: queued again, visible after base * 2^attempts.
select pgflow.create_flow('f', max_attempts => 3, base_delay => 5);
select pgflow.add_step('f', 'a');
select check_.start('f');
select * from check_.claim('f');
select check_.rows(
  format($$select status, attempts_count, started_at, failed_at, output, message_id = %s
    from pgflow.fail_task(run_id => %L, step_slug => 'a', task_index => 0, error_message => 'first')$$, (check_.task('a')).message_id, check_.id()),
  $$values ('queued', 1, null::text, null::text, null::text, true)$$, 'fail_task returns the row: queued again');
select check_.due(check_.visible_at('f', 'a'), '10 s', 'the first delay is 2 * base');
select check_.is(check_.statuses(), 'a:started', 'the step stays started');
select check_.is((check_.state('a')).remaining_tasks, 1, 'remaining_tasks');
select check_.is((check_.run()).status, 'started', 'so does the run');
select check_.empty($$select * from check_.claim('f')$$, 'it cannot be claimed before its time');
select check_.wake('f');
select check_.rows($$select step_slug, task_index from check_.claim('f')$$, $$values ('a', 0)$$, 'and can after it');
select check_.is((check_.task('a')).attempts_count, 2, 'the second attempt');
select check_.is(status, 'queued', 'the second failure') from pgflow.fail_task(check_.id(), 'a', 0, 'second');
select check_.due(check_.visible_at('f', 'a'), '20 s', 'the second delay is 4 * base');
select check_.wake('f');
select check_.complete('a', '"ok"');
select check_.is((check_.task('a')).attempts_count, 3, 'the third attempt');
select check_.is((check_.run()).output, '{"a": "ok"}'::jsonb, 'success at last');
select check_.is(check_.queued('f'), 0, 'queue');
select check_.is(check_.archived('f'), 1, 'one message in all');
