select name, error, is_news
from pgflow.fire_schedules(
  cast(%(names)s as text[]), cast(%(versions)s as text[]), cast(%(next_fire_ats)s as timestamptz[]),
  cast(%(due_names)s as text[]), cast(%(due)s as timestamptz[]))
