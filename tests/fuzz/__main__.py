"""A whole campaign on a server of its own: python -m tests.fuzz [--messages 100000] [--seed N]."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from pgnexus.db import schema
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from tests.fuzz import audit, campaign


async def _run(url: str, directory: Path, seed: int, count: int) -> bool:
    await schema.migrate(url)
    await schema.create_roles(url)
    ledger = await campaign.run(
        url, directory, seed=seed, count=count, say=lambda words: print(words, file=sys.stderr)
    )
    db = await Database.open(url)
    verdict = await audit.judge(db, ledger)
    await db.close()
    print(audit.table(ledger, verdict))
    return not (verdict.lost or verdict.doubled or verdict.faults)


def main() -> int:
    """1 when anything was lost, doubled or otherwise at fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr)
    directory = Path(tempfile.mkdtemp(prefix="pgnexus-fuzz-"))
    directory.chmod(0o755)  # root's server runs as another user
    try:
        with EmbeddedServer(
            directory / "data", settings={"fsync": "off", "synchronous_commit": "off"}
        ) as server:
            return 0 if asyncio.run(_run(server.url, directory, given.seed, given.messages)) else 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
