select nexus.prune_answers(%(limit)s) as pruned
