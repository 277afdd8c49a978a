"""What a step of a flow costs, beside the same work done one task a call: ``python -m benchmarks.flow``."""
