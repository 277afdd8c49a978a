SELECT answer::text FROM peer_answers WHERE number = %(number)s
