select pgflow.begin_pruning(%(part)s, make_interval(secs => %(every)s)) as mine
