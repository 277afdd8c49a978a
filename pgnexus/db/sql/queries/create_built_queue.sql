select pgflow.create_queue('pgflow_built')
from pg_advisory_xact_lock(hashtextextended('pgflow.compile pgflow_built', 0))
