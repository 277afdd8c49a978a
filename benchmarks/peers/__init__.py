"""Public job queues and workflow engines on PostgreSQL doing the same work; see benchmarks/README.md.

Kept empty: the programs below are started in environments that have neither pgnexus nor pydantic.
"""
