-- Where nobody made realtime.send, nothing is sent and nothing fails.
select check_.ok(to_regnamespace('realtime') is null, 'there is no such schema here');
select check_.sequential();
select check_.start('sequential');
select check_.complete(step, '1') from unnest(array['first', 'second', 'last']) step;
select check_.is((check_.run()).status, 'completed', 'the run');
-- a schema alone is no function
create schema realtime;
select check_.start('sequential', '{}', 2);
select check_.is((check_.run(2)).status, 'started', 'a schema without the function');
