select p.removed, p.bytes, p.resume
from pgnexus.prune_results(
  make_interval(secs => %(keep)s), %(after)s, %(limit)s, %(dry)s, %(skip)s::text[], %(exact)s) p
