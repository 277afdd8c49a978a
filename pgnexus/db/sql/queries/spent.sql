select s.cost, s.tokens, s.unpriced, s.since
from (select date_trunc('day', now() at time zone 'utc') at time zone 'utc' as since) d,
     lateral (select n.*, d.since from nexus_api.spent(d.since) n) s
union all
select s.cost, s.tokens, s.unpriced, s.since
from (select date_trunc('month', now() at time zone 'utc') at time zone 'utc' as since) m,
     lateral (select n.*, m.since from nexus_api.spent(m.since) n) s
