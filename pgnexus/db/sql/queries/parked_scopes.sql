select s.scope, exists (select from nexus.parked p where p.scope = s.scope and p.lane = 0) as urgent
from nexus.parked_scopes(%(after)s, cast(%(limit)s as int)) as s (scope)
