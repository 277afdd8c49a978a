select provider, model, usable, reason
from nexus_api.available_models(make_interval(secs => %(lease)s))
