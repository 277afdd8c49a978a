-- ensure_flow_compiled takes an advisory lock that lasts as long as the transaction.
insert into pgflow.flows (flow_slug) values ('f');
select check_.empty($$select * from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'$$,
  'no lock before');
select check_.is(pgflow.ensure_flow_compiled('f', '{"steps": []}') ->> 'status', 'verified', 'a flow without steps');
select check_.ok(count(*) > 0, 'an advisory lock')
from pg_locks where pid = pg_backend_pid() and locktype = 'advisory' and granted and mode = 'ExclusiveLock';
select check_.is(pgflow.is_local(), false, 'is_local is false unless a setting says so');
