select how, answer from nexus.look_up(%(request_id)s, %(key)s, %(kept)s, %(flight)s)
