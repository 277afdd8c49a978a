"""Two versions side by side while the database under them is migrated: `python -m chaos.upgrade`. See docs/chaos.md."""
