"""The whole system under faults, judged by ledger: `python -m chaos`. See docs/chaos.md."""
