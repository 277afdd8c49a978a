"""What must be true when all is over: the callers' ledgers, the database and the provider's account side by side.

Each check returns what it found wrong, in words; none is good. Exceptions are named where they are granted.
"""
