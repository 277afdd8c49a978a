select request_id from chaos.orders
