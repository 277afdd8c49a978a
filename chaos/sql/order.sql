insert into chaos.orders (request_id, mark) values (%s, %s)
