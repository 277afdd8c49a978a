SELECT pgmq.create('benchmark');
CREATE TABLE benchmark_answers (msg_id bigint PRIMARY KEY, answer jsonb NOT NULL);
