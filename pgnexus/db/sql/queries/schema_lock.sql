-- Of the transaction, not of the session: a pooler may give the next one to another session.
SELECT pg_advisory_xact_lock(hashtextextended('pgnexus schema', 0)), set_config('client_min_messages', 'warning', true)
