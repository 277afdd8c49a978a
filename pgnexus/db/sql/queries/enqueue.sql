select ordinal, request_id, status, created
from pgnexus.enqueue(cast(%(requests)s as text[])::jsonb[], cast(%(notify)s as boolean))
