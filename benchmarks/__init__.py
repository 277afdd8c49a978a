"""What pgnexus costs, beside raw pgmq doing the same calls on the same machine: ``python -m benchmarks``."""
