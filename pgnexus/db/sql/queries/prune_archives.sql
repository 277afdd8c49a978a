select p.removed, p.bytes, p.resume
from pgflow.prune_archives(%(queues)s::text[], make_interval(secs => %(keep)s), %(limit)s, %(dry)s) p
