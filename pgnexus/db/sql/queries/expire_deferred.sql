select pgflow.expire_deferred(%(limit)s) as expired
