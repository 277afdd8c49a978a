SELECT t.schemaname || '.' || t.relname AS table, t.n_tup_ins AS inserted, t.n_tup_upd AS updated,
       t.n_tup_hot_upd AS updated_hot, t.n_tup_del AS deleted, t.seq_scan, t.seq_tup_read, t.idx_scan,
       t.idx_tup_fetch, t.n_dead_tup AS dead, pg_total_relation_size(t.relid) AS bytes
FROM pg_stat_user_tables AS t
WHERE t.n_tup_ins + t.n_tup_upd + t.n_tup_del > 0 OR t.seq_tup_read > 0
ORDER BY t.n_tup_ins + t.n_tup_upd + t.n_tup_del DESC
