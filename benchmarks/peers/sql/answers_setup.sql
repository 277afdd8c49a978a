CREATE TABLE peer_answers (number bigint PRIMARY KEY, answer jsonb NOT NULL);
