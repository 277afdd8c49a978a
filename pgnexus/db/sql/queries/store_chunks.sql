select claim, next
from nexus.store_chunks(
  %(request_ids)s::uuid[], %(claims)s::uuid[], %(attempts)s::int[], %(numbers)s::int[], %(discards)s::boolean[],
  %(texts)s::text[], %(reasonings)s::text[], %(tool_calls)s::text[]::jsonb[])
