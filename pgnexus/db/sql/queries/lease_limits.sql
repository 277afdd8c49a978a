select n, granted, cap, next_in, case when isfinite(period) then to_char(period, 'YYYY-MM-DD') end as period, since, ends_in,
       spent, most, rest
from nexus.lease(%(instance_id)s, %(serial)s, %(wants)s::text::jsonb)
