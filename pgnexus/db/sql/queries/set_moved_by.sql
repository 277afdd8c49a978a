select set_config('pgnexus.moved_by', cast(%(seconds)s as text), true)
