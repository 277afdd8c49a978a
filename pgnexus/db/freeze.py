"""Before a release: `python -m pgnexus.db.freeze` makes the first migration from the schema's files."""

from __future__ import annotations

from pgnexus.db.migrations import freeze

if __name__ == "__main__":
    print(freeze())
