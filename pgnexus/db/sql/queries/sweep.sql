select sent, timed_out, next_in from pgnexus.sweep(%(limit)s, %(all)s)
