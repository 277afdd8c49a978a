-- set_vt_batch: each message its own offset; the message's six columns with headers.
select pgmq.create('q');
create temporary table sent on commit drop as
select n, id from unnest(array[1, 2, 3]) n,
  lateral pgmq.send('q', jsonb_build_object('n', n), jsonb_build_object('h', n), 0) as id;
select check_.rows(
  $$select s.n, r.msg_id = s.id, r.read_ct, r.message, r.headers, r.enqueued_at is not null
    from pgflow.set_vt_batch(queue_name => 'q', msg_ids => array(select id from sent where n < 3 order by n), vt_offsets => array[30, 600]) r
    join sent s on s.id = r.msg_id order by s.n$$,
  $$values (1, true, 0, '{"n": 1}'::jsonb, '{"h": 1}'::jsonb, true), (2, true, 0, '{"n": 2}', '{"h": 2}', true)$$,
  'the messages');
select check_.due(vt, '30 s', 'the first offset') from pgmq.q_q where msg_id = (select id from sent where n = 1);
select check_.due(vt, '600 s', 'the second offset') from pgmq.q_q where msg_id = (select id from sent where n = 2);
select check_.ok(vt <= clock_timestamp(),
  'a message that was not named') from pgmq.q_q where msg_id = (select id from sent where n = 3);
select check_.due(vt, '5 s', 'the vt returned')
from pgflow.set_vt_batch('q', array(select id from sent where n = 3), array[5]);
select check_.due(vt, '0', 'offset 0: at once')
  from pgflow.set_vt_batch('q', array(select id from sent where n = 1), array[0]);
select check_.empty($$select * from pgflow.set_vt_batch('q', '{}'::bigint[], '{}'::int[])$$, 'no ids');
select check_.empty($$select * from pgflow.set_vt_batch('q', array[987654321::bigint], array[5])$$, 'an unknown id');
select check_.throws(
  $$select * from pgflow.set_vt_batch('q', array[1, 2]::bigint[], array[5])$$, 'P0001',
  'msg_ids length (2) must equal vt_offsets length (1)', 'fewer offsets');
select check_.throws(
  $$select * from pgflow.set_vt_batch('q', array[1]::bigint[], array[5, 6, 7])$$, 'P0001',
  'msg_ids length (1) must equal vt_offsets length (3)', 'more offsets');
select check_.is(array_agg(k order by k), array['enqueued_at', 'headers', 'message', 'msg_id', 'read_ct', 'vt'],
  'six columns')
from pgflow.set_vt_batch('q', array(select id from sent where n = 2), array[600]) r, jsonb_object_keys(to_jsonb(r)) k;
