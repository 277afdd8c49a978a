-- What lies where: bytes on the disk, rows that are dead, and rows.
select case when s.relname like 'job\_results%' then 'results' when s.schemaname = 'pgflow' then 'runs' end as part,
       sum(pg_total_relation_size(s.relid))::bigint as bytes, sum(s.n_dead_tup)::bigint as dead, sum(s.n_live_tup)::bigint as live
from pg_stat_user_tables s
where s.relname like 'job\_results%' or s.schemaname = 'pgflow' and s.relname in ('runs', 'step_states', 'step_tasks')
group by 1 order by 1
