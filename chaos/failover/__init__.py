"""A primary is killed under load, its standby promoted: `python -m chaos.failover`. See docs/chaos.md."""
