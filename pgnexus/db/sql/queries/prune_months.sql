select p.removed, p.bytes, p.resume, p.busy, p.what
from pgnexus.prune_months(make_interval(secs => %(keep)s), %(after)s, %(dry)s) p
