"""A primary is killed under load, its standby promoted, and all goes on: `python -m chaos.failover`. See docs/chaos.md."""
