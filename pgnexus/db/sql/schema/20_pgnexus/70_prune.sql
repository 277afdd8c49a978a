-- Keeping job_results small: results that are old enough go, whole months where that is possible. What has not ended
-- stays, however old it is, and so does what a living idempotency key names.

create index idempotency_keys_by_request on pgnexus.idempotency_keys (request_id);

-- What was written into a month since it was first looked whether it may go: its number tells whether more was.
create table pgnexus.month_writes (
  month      text not null,
  request_id uuid not null
);

create function pgnexus.note_month_write() returns trigger
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  insert into pgnexus.month_writes (month, request_id) values (tg_table_name, new.request_id);
  return null;
end
$$;

-- Results that ended before then, in the order of their ids. Of those minted since (UUIDv7) none can have, so they are
-- passed over; ids of other versions lie before and behind. In p_skip the names of months that are told of elsewhere.
-- Unless p_exact, those of the month in which then lies are left until all of that month may go: a row that is deleted, and
-- vacuumed away, costs 4 kB of WAL, a month that is dropped next to nothing.
create function pgnexus.prune_results(
  p_keep interval, p_after text, p_limit int, p_dry boolean, p_skip text[] default '{}', p_exact boolean default true)
returns table (removed bigint, bytes bigint, resume text)
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_young uuid := pgnexus.uuid_floor(case when p_exact then v_before else date_trunc('month', v_before, 'UTC') end);
  v_after uuid := coalesce(nullif(p_after, ''), '00000000-0000-0000-0000-000000000000')::uuid;
  v_to uuid := case when v_after < v_young then v_young else 'ffffffff-ffff-ffff-ffff-ffffffffffff' end;
  v_slice uuid[];
begin
  v_slice := array(
    select j.request_id from pgnexus.job_results j
    where j.request_id > v_after and j.request_id < v_to order by j.request_id limit p_limit);
  if cardinality(v_slice) = p_limit then
    v_to := v_slice[p_limit];
    resume := v_to;
  elsif v_to = v_young then
    resume := pgnexus.uuid_floor(clock_timestamp() + interval '1 day');
  end if;
  select count(*), coalesce(sum(300 + coalesce(pg_column_size(j.input), 0) + coalesce(pg_column_size(j.output), 0)
                                + coalesce(pg_column_size(j.error), 0)), 0),
         array_agg(j.request_id)
  into removed, bytes, v_slice
  from (
    select j.request_id, j.input, j.output, j.error from pgnexus.job_results j
    where j.request_id > v_after and j.request_id <= v_to and j.tableoid::regclass::text <> all (p_skip)
      and j.finished_at < v_before and not exists (
        select from pgnexus.idempotency_keys k where k.request_id = j.request_id and k.expires_at > clock_timestamp())
    for update of j skip locked) j;
  if not p_dry and removed > 0 then
    delete from pgnexus.job_results j
    where j.request_id > v_after and j.request_id <= v_to and j.request_id = any (v_slice);
  end if;
  return next;
end
$$;

-- The oldest month behind p_after that ended before then; null when there is none.
create function pgnexus.month_before(p_before timestamptz, p_after text) returns text
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select min(c.relname collate "C") from pg_inherits i join pg_class c on c.oid = i.inhrelid
  where i.inhparent = 'pgnexus.job_results'::regclass and c.relname ~ '^job_results_\d{4}_\d{2}$'
    and c.relname collate "C" > p_after
    and (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') at time zone 'UTC' <= p_before
$$;

-- Whether a living idempotency key names a request of this month.
create function pgnexus.month_has_keys(p_month text) returns boolean
language sql stable set search_path = pg_catalog, pgnexus, pg_temp as $$
  select exists (
    select from pgnexus.idempotency_keys k
    where k.request_id >= pgnexus.uuid_floor(m.start at time zone 'UTC')
      and k.request_id < pgnexus.uuid_floor((m.start + interval '1 month') at time zone 'UTC') and k.expires_at > clock_timestamp())
  from (select to_date(right(p_month, 7), 'YYYY_MM')::timestamp as start) m
$$;

-- Have it noted what is written into a month from now on; waits a moment for who writes into it, and no longer.
create function pgnexus.watch_month(p_month text) returns void
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  if not exists (select from pg_trigger t where t.tgrelid = to_regclass('pgnexus.' || p_month) and t.tgname = 'note_write') then
    execute format('create trigger note_write after insert or update on pgnexus.%I for each row
                    execute function pgnexus.note_month_write()', p_month);
  end if;
end
$$;

-- Whole months, in four steps: have it noted what is written into a month; look through its rows, 16 MB at a time, for one
-- that may not go; lock job_results for the moment it takes to drop the month; do so if nothing was written since the first
-- step. Busy: somebody else is at it, or the lock was not to be had within lock_timeout; the same again, later. What is a
-- month that went. The cursor is MONTH:BLOCK:ROWS:WRITES, or MONTH when it is done with.
create function pgnexus.prune_months(p_keep interval, p_after text, p_dry boolean)
returns table (removed bigint, bytes bigint, resume text, busy boolean, what text)
language plpgsql security definer set search_path = pg_catalog, pgnexus, pg_temp set lock_timeout = '100ms' set jit = off as $$
declare
  v_before timestamptz := clock_timestamp() - p_keep;
  v_month text := split_part(p_after, ':', 1);
  v_block bigint := nullif(split_part(p_after, ':', 2), '');
  v_rows bigint := nullif(split_part(p_after, ':', 3), '');
  v_writes bigint := nullif(split_part(p_after, ':', 4), '');
  v_found bigint;
  v_kept bigint;
  v_size bigint;
begin
  removed := 0;
  bytes := 0;
  busy := false;
  if p_keep < interval '0' then
    raise exception using errcode = 'PN002', message = 'what is to come cannot be pruned';
  elsif not pg_try_advisory_xact_lock(hashtext('pgnexus.partitions')) then
    busy := true;
    resume := p_after;
  elsif v_block is null then
    v_month := pgnexus.month_before(v_before, v_month);
    resume := v_month;
    if v_month is not null and not pgnexus.month_has_keys(v_month) then
      if not p_dry then
        perform pgnexus.watch_month(v_month);
      end if;
      resume := v_month || format(':0:0:%s', (select count(*) from pgnexus.month_writes w where w.month = v_month));
    end if;
  elsif v_block < pg_relation_size(format('pgnexus.%I', v_month)::regclass) / 8192 then
    execute format(
      'select count(*), count(*) filter (where (j.finished_at < $1) is not true)
       from pgnexus.%I j where j.ctid >= $2 and j.ctid < $3', v_month)
    into v_found, v_kept using v_before, format('(%s,0)', v_block)::tid, format('(%s,0)', v_block + 2048)::tid;
    resume := case when v_kept > 0 then v_month else format('%s:%s:%s:%s', v_month, v_block + 2048, v_rows + v_found, v_writes) end;
  else
    resume := v_month;
    v_size := pg_total_relation_size(format('pgnexus.%I', v_month)::regclass);
    if p_dry or pgnexus.drop_month(v_month, v_writes) then
      removed := v_rows;
      bytes := v_size;
      what := v_month;
    end if;
  end if;
  return next;
exception
  when undefined_table then  -- somebody else dropped it
    resume := v_month;
    return next;
  when lock_not_available or deadlock_detected then
    busy := true;
    resume := p_after;
    return next;
end
$$;

-- Drop a month, if so many writes into it and no more have been noted; whether it went.
create function pgnexus.drop_month(p_month text, p_writes bigint) returns boolean
language plpgsql set search_path = pg_catalog, pgnexus, pg_temp as $$
begin
  lock table only pgnexus.job_results in access exclusive mode;
  if (select count(*) from pgnexus.month_writes w where w.month = p_month) <> p_writes then
    return false;
  end if;
  execute format('drop table pgnexus.%I', p_month);
  delete from pgnexus.month_writes w where w.month = p_month;
  return true;
end
$$;
