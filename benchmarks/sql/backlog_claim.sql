SELECT count(*)::int FROM nexus.take_requests('00000000-0000-4000-8000-000000000001', %(limit)s, %(limit)s)
