select p.removed, p.bytes, p.resume
from pgflow.prune_flow_archives(make_interval(secs => %(keep)s), %(limit)s, %(dry)s) p
