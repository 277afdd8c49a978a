-- How long somebody has waited for a lock on a table at this moment, in milliseconds.
select coalesce(max(extract(epoch from clock_timestamp() - l.waitstart)) * 1000, 0)::float8 as longest
from pg_locks l where not l.granted and l.locktype = 'relation' and l.waitstart is not null
