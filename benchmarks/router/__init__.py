"""Calls a second through the router and our wire, beside the libraries that others use; see benchmarks/README.md."""
