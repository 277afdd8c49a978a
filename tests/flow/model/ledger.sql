-- For the property test: every change of state and every event, in the order in which they were made.

create schema realtime;

create table realtime.messages (
  id bigint generated always as identity primary key, run_id uuid, event text, payload jsonb
);
create index on realtime.messages (run_id);

-- Where a function of this name exists, the engine sends its events through it.
create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void
language sql as $$
  insert into realtime.messages (run_id, event, payload)
  select split_part(topic, ':', 3)::uuid, send.event, send.payload
$$;

create schema ledger;

create table ledger.changes (
  id bigint generated always as identity primary key,
  kind text, run_id uuid, step_slug text, task_index int, was text, became text,
  transaction bigint default txid_current()  -- what a transaction changes twice, others see once
);
create index on ledger.changes (run_id);

create function ledger.note() returns trigger
language plpgsql as $$
declare
  v_row jsonb := to_jsonb(new);
begin
  if tg_op = 'INSERT' or old.status <> new.status then
    insert into ledger.changes (kind, run_id, step_slug, task_index, was, became)
    values (tg_table_name, new.run_id, v_row ->> 'step_slug', (v_row ->> 'task_index')::int,
            case when tg_op = 'UPDATE' then old.status end, new.status);
  end if;
  return null;
end
$$;

create trigger note after insert or update on pgflow.runs for each row execute function ledger.note();
create trigger note after insert or update on pgflow.step_states for each row execute function ledger.note();
create trigger note after insert or update on pgflow.step_tasks for each row execute function ledger.note();
