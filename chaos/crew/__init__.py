"""Callers that any version of pgnexus can run, workers, a provider, and the audit of what became of all they asked."""
