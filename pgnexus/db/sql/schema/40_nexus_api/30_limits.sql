-- What the limits and budgets stand at. The limit is the smallest that a live instance's settings name for the scope; an
-- agent without a row of its own has that of agent:*. level is what a rate has left, held what calls under way, and blocks of
-- workers, set aside of calls at once and of budgets.
create function nexus_api.limits()
returns table (scope text, kind text, period date, "limit" numeric, spent numeric, held numeric, level numeric)
language sql stable security definer set search_path = pg_catalog, nexus_api, pg_temp as $$
  with live as materialized (select nexus.live_instances() as instance_id), configured as (
    select l.scope, l.kind, min(l.amount) as amount
    from nexus.configured_limits l join live on live.instance_id = l.instance_id group by 1, 2
  ), used as (
    select h.scope, h.kind, h.period, 0 as spent, greatest(h.leased - coalesce(c.settled, 0), 0) as held, null::numeric as level
    from nexus.holdings h left join nexus.charged c using (scope, kind, period, instance_id)
    where isfinite(h.period) or h.instance_id in (select live.instance_id from live)
    union all
    select c.scope, c.kind, c.period, c.spent, 0, null from nexus.charged c
    union all
    select b.scope, b.kind, null, null, null,
           case when l.amount is null then b.level
                else least(greatest(l.amount / 10, 1),
                           b.level + extract(epoch from clock_timestamp() - b.refilled_at) * l.amount / 60) end
    from nexus.buckets b
    left join lateral (
      select f.amount from configured f
      where f.kind = b.kind and (f.scope = b.scope or (f.scope = 'agent:*' and b.scope like 'agent:%'))
      order by f.scope = b.scope desc limit 1
    ) l on true
  ), now_used as (
    select u.scope, u.kind, nullif(u.period, '-infinity') as period, sum(u.spent) as spent, sum(u.held) as held, min(u.level) as level
    from used u
    where u.period is null or u.period = nexus.period_of(u.kind, clock_timestamp())
    group by 1, 2, 3
  ), shown as (
    select n.* from now_used n
    union all
    select f.scope, f.kind, case when f.kind like '%\_per\_day' or f.kind like '%\_per\_month'
                                 then nexus.period_of(f.kind, clock_timestamp()) end,
           case when f.kind not like '%\_per\_minute' then 0 end, case when f.kind not like '%\_per\_minute' then 0 end,
           case when f.kind like '%\_per\_minute' then greatest(f.amount / 10, 1) end
    from configured f
    where f.scope <> 'agent:*' and not exists (select from now_used n where n.scope = f.scope and n.kind = f.kind)
  )
  select s.scope, s.kind, s.period, l.amount, s.spent, s.held, s.level
  from shown s
  left join lateral (
    select f.amount from configured f
    where f.kind = s.kind and (f.scope = s.scope or (f.scope = 'agent:*' and s.scope like 'agent:%'))
    order by f.scope = s.scope desc limit 1
  ) l on true
  order by 1, 2, 3
$$;
