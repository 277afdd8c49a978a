select nexus.unpark_stranded(make_interval(secs => %(age)s), cast(%(limit)s as int)) as unparked
