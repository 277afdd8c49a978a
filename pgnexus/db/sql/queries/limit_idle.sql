select set_config('idle_in_transaction_session_timeout', (ceil(%(seconds)s::double precision * 1000)::bigint)::text, true)
