select nexus.amend_results(%(limit)s) as amended
