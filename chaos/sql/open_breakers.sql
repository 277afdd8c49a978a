select * from nexus.breakers where reason = 'failures' or open_until > now() + interval '2 s'
