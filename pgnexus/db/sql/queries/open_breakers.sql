select b.provider, b.model, b.reason,
       greatest(0, extract(epoch from b.open_until - clock_timestamp()))::double precision as open_for
from nexus.breakers b
