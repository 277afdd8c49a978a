with removed as (delete from pgflow.schedules s where s.name = %(name)s returning s.name)
select removed.name, pg_notify('pgflow_schedules', '') from removed
