select p.removed, p.bytes, p.resume
from nexus.prune_runs(make_interval(secs => %(keep)s), %(after)s, %(limit)s, %(dry)s) p
