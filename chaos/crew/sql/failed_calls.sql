-- Calls that their worker took for failed; the provider may have thought otherwise.
select request_id::text, count(*) as n from nexus.attempts where outcome not in ('success', 'unknown') group by 1
