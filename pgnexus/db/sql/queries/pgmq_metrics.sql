SELECT queue_name, queue_length, queue_visible_length AS visible, oldest_msg_age_sec AS oldest_age,
       newest_msg_age_sec AS newest_age, total_messages
FROM pgmq.metrics(%(queue)s)
