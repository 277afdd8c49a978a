SELECT answer FROM benchmark_answers WHERE msg_id = %(id)s
