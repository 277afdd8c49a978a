select count(distinct c.request_id) as streams, count(*) as chunks,
       count(distinct c.xmin::text) as commits, count(distinct (c.request_id, c.xmin::text)) as commits_of_streams
from nexus.chunks c
