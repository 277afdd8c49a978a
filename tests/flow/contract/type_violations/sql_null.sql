-- SQL NULL is no array, either.
select check_.fan();
select check_.start('fan');
select check_.complete('list', null);
select check_.is((check_.run()).status, 'failed', 'the run');
select check_.is((check_.task('list')).status, 'failed', 'the task');
select check_.is((check_.state('list')).status, 'failed', 'the step');
select check_.is((check_.state('list')).error_message, '[TYPE_VIOLATION] Produced null instead of array', 'the error');
select check_.is((check_.task('list')).error_message, '[TYPE_VIOLATION] Produced null instead of array',
  'the task''s error');
select check_.is(check_.queued('fan'), 0, 'no message is left');
