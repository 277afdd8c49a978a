SELECT count(*) FROM peer_answers
