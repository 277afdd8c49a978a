-- create_flow: NULL means the default, idempotent, never updates, makes the queue of the flow's name.
select check_.rows(
  $$select flow_slug, opt_max_attempts, opt_base_delay, opt_timeout from pgflow.create_flow('plain')$$,
  $$values ('plain', 3, 5, 60)$$, 'the defaults of create_flow');
select check_.rows(
  $$select flow_slug, opt_max_attempts, opt_base_delay, opt_timeout
    from pgflow.create_flow(flow_slug => 'given', max_attempts => 7, base_delay => 11, timeout => 13)$$,
  $$values ('given', 7, 11, 13)$$, 'the options given');
select check_.rows(
  $$select flow_slug, opt_max_attempts, opt_base_delay, opt_timeout
    from pgflow.create_flow(flow_slug => 'nulls', max_attempts => null, base_delay => null, timeout => null)$$,
  $$values ('nulls', 3, 5, 60)$$, 'NULL means the default');
select check_.rows(
  $$select flow_slug, opt_max_attempts, opt_base_delay, opt_timeout
    from pgflow.create_flow('given', max_attempts => 1, base_delay => 1, timeout => 1)$$,
  $$values ('given', 7, 11, 13)$$, 'creating again returns the old row, unchanged');
select check_.rows(
  $$select opt_max_attempts, opt_base_delay, opt_timeout from pgflow.flows where flow_slug = 'given'$$,
  $$values (7, 11, 13)$$, 'creating again updates nothing');
select check_.is(count(*), 1, 'one flow of the name') from pgflow.flows where flow_slug = 'plain';
select check_.is(count(*), 1, 'a queue of the flow''s name') from pgmq.meta where queue_name = 'plain';
select check_.ok(to_regclass('pgmq.q_plain') is not null, 'the queue''s table');
select check_.ok(to_regclass('pgmq.a_plain') is not null, 'the archive''s table');
select check_.due(created_at, '0', 'created_at is now') from pgflow.flows where flow_slug = 'plain';
select check_.is(pg_typeof(created_at)::text, 'timestamp with time zone', 'created_at')
from pgflow.flows where flow_slug = 'plain';

-- a queue that was there before is no fault
select pgmq.create('before');
select check_.is((pgflow.create_flow('before')).flow_slug, 'before', 'a flow whose queue was there before');

-- the column's own default is another than create_flow's
insert into pgflow.flows (flow_slug) values ('inserted');
select check_.rows(
  $$select opt_max_attempts, opt_base_delay, opt_timeout from pgflow.flows where flow_slug = 'inserted'$$,
  $$values (3, 1, 60)$$, 'the columns'' defaults');
select check_.violates($$insert into pgflow.flows (flow_slug) values ('inserted')$$, 'flows_pkey',
  'flow_slug is the key');
