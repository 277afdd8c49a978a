SELECT count(*) FROM pgnexus.enqueue(ARRAY(
    SELECT jsonb_build_object(
               'complexity', 'simple',
               'messages', jsonb_build_array(jsonb_build_object(
                   'role', 'user', 'content', substr(%(text)s::text, 1 + mod(i * 7, length(%(text)s::text) - 1000), 1000)))
           ) || %(extra)s::jsonb
    FROM generate_series(%(start)s::int, %(start)s::int + %(count)s - 1) AS i
), false)
