with known as (
  select m.provider, m.model, m.usable, m.reason
  from jsonb_to_recordset(%(models)s::jsonb) as m (provider text, model text, usable boolean, reason text)
), gone as (
  delete from nexus.models m
  where not exists (select from pgflow.workers w where w.worker_id = m.instance_id and w.stopped_at is null)
)
insert into nexus.models (instance_id, provider, model, usable, reason)
select %(worker_id)s, known.provider, known.model, known.usable, known.reason from known
on conflict (instance_id, provider, model) do update set usable = excluded.usable, reason = excluded.reason
