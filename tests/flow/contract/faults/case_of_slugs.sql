-- Flows whose slugs differ only in case have a queue each.
select check_.sequential('report');
select check_.sequential('Report');
select check_.sequential('REPORT');
select check_.is(count(distinct check_.queue(slug)), 3, 'three queues') from unnest(array['report', 'Report',
  'REPORT']) slug;
select check_.is(check_.queue('report'), 'report', 'the lower-case one bears the slug');
select check_.start('report', '{}', 1), check_.start('Report', '{}', 2), check_.start('REPORT',
  '{}', 3), check_.start('REPORT', '{}', 4);
select check_.is(check_.queued('report'), 1, 'messages of report');
select check_.is(check_.queued('Report'), 1, 'messages of Report');
select check_.is(check_.queued('REPORT'), 2, 'messages of REPORT');
select check_.rows($$select flow_slug, run_id
  from check_.claim('Report')$$, format($$values ('Report', %L)$$, check_.id(2)), 'a claim of Report');
select check_.is((check_.task('first', 0, n)).status, 'queued', 'the others wait') from unnest(array[1, 3, 4]) n;
select check_.complete(step, '1', 0, 2) from unnest(array['first', 'second', 'last']) step;
select check_.is((check_.run(2)).status, 'completed', 'Report has run');
select pgflow.delete_flow_and_data('Report');
select check_.is(check_.queued('report') + check_.queued('REPORT'), 3, 'deleting one leaves the others'' messages');
select check_.is(check_.statuses(1), 'first:started second:created last:created', 'and runs');
-- the other way round: the lower-case one comes last
select check_.sequential('Later');
select check_.sequential('later');
select check_.start('Later', '{}', 5), check_.start('later', '{}', 6);
select check_.rows($$select run_id from check_.claim('later')$$, format('values (%L)', check_.id(6)), 'later');
select check_.rows($$select run_id from check_.claim('Later')$$, format('values (%L)', check_.id(5)), 'Later');
