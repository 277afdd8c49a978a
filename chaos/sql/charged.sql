select coalesce(sum(spent), 0) as spent from nexus.charged where scope = %(scope)s and kind = %(kind)s
