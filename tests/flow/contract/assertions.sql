-- What the contract's tests are written with: assertions that raise, and short ways to set a scene.
--
-- Each assertion that holds adds one to the setting check_.count, so that a file whose assertions never ran
-- is found out. A run is called by a small number: check_.id(1) is the run_id of the test's first run.

create schema check_;

create function check_.passed() returns void language plpgsql as $$
begin
  perform set_config('check_.count', (coalesce(nullif(current_setting('check_.count', true), ''),
  '0')::int + 1)::text, true);
end
$$;

create function check_.ok(holds boolean, label text) returns void language plpgsql as $$
begin
  if holds is not true then
    raise exception '%: got %, expected true', label, coalesce(holds::text, 'NULL') using errcode = 'assert_failure';
  end if;
  perform check_.passed();
end
$$;

create function check_.is(actual anycompatible, expected anycompatible, label text) returns void language plpgsql as $$
begin
  if actual is distinct from expected then
    raise exception '%: got %, expected %', label, coalesce(actual::text, 'NULL'), coalesce(expected::text, 'NULL')
      using errcode = 'assert_failure';
  end if;
  perform check_.passed();
end
$$;

-- The rows of two queries, in their order; types and names of columns do not matter.
create function check_.rows(actual text, expected text, label text) returns void language plpgsql as $$
declare
  got text[];
  wanted text[];
begin
  execute format('select coalesce(array_agg(q::text), %L) from (%s) as q', '{}', actual) into got;
  execute format('select coalesce(array_agg(q::text), %L) from (%s) as q', '{}', expected) into wanted;
  if got is distinct from wanted then
    raise exception E'%: got\n  %\nexpected\n  %', label, array_to_string(got, E'\n  '), array_to_string(wanted, E'\n  ')
      using errcode = 'assert_failure';
  end if;
  perform check_.passed();
end
$$;

create function check_.empty(query text, label text) returns void language plpgsql as $$
begin
  perform check_.rows(query, 'select where false', label);
end
$$;

-- A statement that fails: with this SQLSTATE, and with this text unless it is NULL.
create function check_.throws(statement text, state text, message text, label text) returns void language plpgsql as $$
declare
  got_state text := 'no error';
  got_message text;
begin
  begin
    execute statement;
  exception when others then
    got_state := sqlstate;
    got_message := sqlerrm;
  end;
  if got_state <> state or (message is not null and got_message is distinct from message) then
    raise exception '%: got % (%), expected % (%)', label, got_state, got_message, state, coalesce(message, 'any text')
      using errcode = 'assert_failure';
  end if;
  perform check_.passed();
end
$$;

-- A statement that a constraint of this name refuses.
create function check_.violates(statement text, constraint_wanted text, label text) returns void language plpgsql as $$
declare
  got text := 'no error';
  got_message text;
begin
  begin
    execute statement;
  exception when others then
    get stacked diagnostics got = constraint_name, got_message = message_text;
  end;
  if got <> constraint_wanted then
    raise exception '%: got "%" (%), expected the constraint %', label, got, got_message, constraint_wanted
      using errcode = 'assert_failure';
  end if;
  perform check_.passed();
end
$$;

-- A time that was set in this transaction, so much after the time of setting it.
create function check_.due(actual timestamptz, after interval, label text) returns void language plpgsql as $$
begin
  if actual is null or actual < now() + after or actual > clock_timestamp() + after then
    raise exception '%: got % (in %), expected in %', label, actual, actual - clock_timestamp(), after
      using errcode = 'assert_failure';
  end if;
  perform check_.passed();
end
$$;

-- Reading.

create function check_.id(n int default 1) returns uuid language sql immutable as $$
  select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid
$$;

create function check_.run(n int default 1) returns pgflow.runs language sql volatile as $$
  select * from pgflow.runs r where r.run_id = check_.id(n)
$$;

create function check_.state(step text, n int default 1) returns pgflow.step_states language sql volatile as $$
  select * from pgflow.step_states s where s.run_id = check_.id(n) and s.step_slug = step
$$;

create function check_.task(step text, task_index int default 0, n int default 1) returns pgflow.step_tasks
language sql volatile as $$
  select * from pgflow.step_tasks t
  where t.run_id = check_.id(n) and t.step_slug = step and t.task_index = task.task_index
$$;

-- 'a:completed b:skipped' of a run, in the order of the steps.
create function check_.statuses(n int default 1) returns text language sql volatile as $$
  select string_agg(s.step_slug || ':' || s.status, ' ' order by d.step_index)
  from pgflow.step_states s join pgflow.steps d using (flow_slug, step_slug)
  where s.run_id = check_.id(n)
$$;

-- The flow's queue: its slug where that is a legal name for a queue.
create function check_.queue(flow text) returns text language plpgsql volatile as $$
declare
  name text := flow;
begin
  if length(flow) > 47 or flow <> lower(flow) then
    execute 'select queue_name from pgflow.flows where flow_slug = $1' into name using flow;
  end if;
  return name;
end
$$;

create function check_.messages(flow text)
returns table (msg_id bigint, read_ct int, vt timestamptz, message jsonb) language plpgsql volatile as $$
begin
  return query execute format(
    'select msg_id, read_ct, vt, message from pgmq.%I order by msg_id', 'q_' || check_.queue(flow));
end
$$;

create function check_.archive(flow text)
returns table (msg_id bigint, read_ct int, archived_at timestamptz, message jsonb) language plpgsql volatile as $$
begin
  return query execute format(
    'select msg_id, read_ct, archived_at, message from pgmq.%I order by msg_id', 'a_' || check_.queue(flow));
end
$$;

create function check_.queued(flow text) returns int language sql volatile as $$
  select count(*)::int from check_.messages(flow)
$$;

create function check_.archived(flow text) returns int language sql volatile as $$
  select count(*)::int from check_.archive(flow)
$$;

-- When the message of a task may be read.
create function check_.visible_at(flow text, step text, task_index int default 0, n int default 1) returns timestamptz
language sql volatile as $$
  select m.vt from check_.messages(flow) m
  where m.message @> jsonb_build_object('run_id', check_.id(n), 'step_slug', step, 'task_index', task_index)
$$;

-- Acting.

-- A worker as pgflow's own workers register: by plain insert.
create function check_.worker(n int default 1) returns uuid language plpgsql volatile as $$
begin
  insert into pgflow.workers (worker_id, queue_name, function_name)
  values (check_.id(900 + n), 'check', 'check') on conflict do nothing;
  return check_.id(900 + n);
end
$$;

create function check_.start(flow text, input jsonb default '{}', n int default 1) returns void
language plpgsql volatile as $$
begin
  perform * from pgflow.start_flow(flow_slug => flow, input => start.input, run_id => check_.id(n));
end
$$;

-- Read up to qty messages of the flow's queue and start their tasks.
create function check_.claim(flow text, qty int default 10000) returns setof pgflow.step_task_record
language plpgsql volatile as $$
declare
  ids bigint[];
  worker uuid := check_.worker();
begin
  select coalesce(array_agg(m.msg_id order by m.msg_id), '{}') into ids from pgmq.read(check_.queue(flow), 1, qty) m;
  return query select * from pgflow.start_tasks(flow_slug => flow, msg_ids => ids, worker_id => worker);
end
$$;

-- Let the time of all delayed messages come.
create function check_.wake(flow text) returns void language plpgsql volatile as $$
begin
  execute format('update pgmq.%I set vt = clock_timestamp()', 'q_' || check_.queue(flow));
end
$$;

-- Claim whatever the run's flow offers, then complete one task.
create function check_.complete(step text, output jsonb, task_index int default 0, n int default 1) returns void
language plpgsql volatile as $$
begin
  perform check_.claim((check_.run(n)).flow_slug);
  perform * from pgflow.complete_task(
    run_id => check_.id(n), step_slug => step, task_index => complete.task_index,
    output => complete.output);
end
$$;

-- Claim whatever the run's flow offers, also what waits for a retry, then fail one task.
create function check_.fail(step text, message text default 'boom', task_index int default 0, n int default 1)
returns void language plpgsql volatile as $$
begin
  perform check_.wake((check_.run(n)).flow_slug);
  perform check_.claim((check_.run(n)).flow_slug);
  perform * from pgflow.fail_task(
    run_id => check_.id(n), step_slug => step, task_index => fail.task_index, error_message => message);
end
$$;

-- Let a task have been started so long ago.
create function check_.age(step text, age interval, task_index int default 0, n int default 1) returns void
language plpgsql volatile as $$
begin
  update pgflow.step_tasks t set queued_at = clock_timestamp() - age, started_at = clock_timestamp() - age
  where t.run_id = check_.id(n) and t.step_slug = step and t.task_index = age.task_index;
end
$$;

-- Flows.

-- first -> second -> last
create function check_.sequential(flow text default 'sequential') returns void language plpgsql volatile as $$
begin
  perform pgflow.create_flow(flow);
  perform pgflow.add_step(flow, 'first');
  perform pgflow.add_step(flow, 'second', array['first']);
  perform pgflow.add_step(flow, 'last', array['second']);
end
$$;

-- top -> left, right -> bottom
create function check_.diamond(flow text default 'diamond') returns void language plpgsql volatile as $$
begin
  perform pgflow.create_flow(flow);
  perform pgflow.add_step(flow, 'top');
  perform pgflow.add_step(flow, 'left', array['top']);
  perform pgflow.add_step(flow, 'right', array['top']);
  perform pgflow.add_step(flow, 'bottom', array['left', 'right']);
end
$$;

-- list -> each (a map) -> total
create function check_.fan(flow text default 'fan') returns void language plpgsql volatile as $$
begin
  perform pgflow.create_flow(flow, max_attempts => 1);
  perform pgflow.add_step(flow, 'list');
  perform pgflow.add_step(flow, 'each', array['list'], step_type => 'map');
  perform pgflow.add_step(flow, 'total', array['each']);
end
$$;

-- each (a root map) -> total
create function check_.root_map(flow text default 'mapped') returns void language plpgsql volatile as $$
begin
  perform pgflow.create_flow(flow, max_attempts => 1);
  perform pgflow.add_step(flow, 'each', step_type => 'map');
  perform pgflow.add_step(flow, 'total', array['each']);
end
$$;

-- Events, as Supabase would take them.

create function check_.listen() returns void language plpgsql volatile as $$
begin
  create schema realtime;
  create table realtime.sent (
    id bigserial, payload jsonb, event text, topic text, private boolean);
  create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void
  language sql as 'insert into realtime.sent (payload, event, topic, private) values ($1, $2, $3, $4)';
end
$$;

-- The names of the run's events in the order they were sent.
create function check_.events(n int default 1) returns text language plpgsql volatile as $$
begin
  return (select string_agg(s.event, ' ' order by s.id) from realtime.sent s
          where s.topic = 'pgflow:run:' || check_.id(n)::text);
end
$$;

-- The payload of the run's one event of this name.
create function check_.payload(name text, n int default 1) returns jsonb language plpgsql volatile as $$
declare
  payloads jsonb[];
begin
  select coalesce(array_agg(s.payload), '{}') into payloads from realtime.sent s
  where s.topic = 'pgflow:run:' || check_.id(n)::text and s.event = name;
  if cardinality(payloads) <> 1 then
    raise exception 'event %: sent % times, expected once', name, cardinality(payloads) using errcode = 'assert_failure';
  end if;
  return payloads[1];
end
$$;
