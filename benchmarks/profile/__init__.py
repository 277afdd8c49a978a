"""Where a request's time and WAL go inside the server and the worker: ``python -m benchmarks.profile``."""
