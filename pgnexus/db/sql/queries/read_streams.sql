select place, number, discard, text, reasoning, tool_calls
from nexus_api.read_streams(%(request_ids)s::uuid[], %(after)s::int[], %(limit)s)
