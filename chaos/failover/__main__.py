"""`python -m chaos.failover [--seed N] [--failovers N]`: nothing accepted may be lost when the primary is."""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from chaos.crew.audit import Book, Verdict
from chaos.failover.run import Failover, FailoverRun


def _report(run: FailoverRun, verdict: Verdict, book: Book) -> None:
    for line in verdict.lines():
        print(line)
    for number, one in enumerate(run.failovers, start=1):
        print(f"failover {number}: {_words(one, book)}")
    for fault in verdict.wrong[:40]:
        print(f"WRONG {fault}")


def _words(one: Failover, book: Book) -> str:
    accepted = min((at for at, _ in book.took if at > one.promoted), default=None)
    told = min((at for at in book.told_at if at > one.promoted), default=None)
    return ", ".join(
        [
            f"{one.promoted - one.killed:.2f} s without a primary",
            f"the next acceptance {_after(accepted, one.promoted)}",
            f"the next answer {_after(told, one.promoted)} after the promotion",
            *one.besides,
        ]
    )


def _after(at: float | None, since: float) -> str:
    return "never" if at is None else f"{at - since:.2f} s"


def _one(given: argparse.Namespace) -> bool:
    path = Path(tempfile.mkdtemp(prefix=f"pgnexus-failover-{given.seed}-"))
    path.chmod(0o755)
    print(f"seed {given.seed}, in {path}", flush=True)
    run = FailoverRun(path, random.Random(given.seed), synchronous=not given.asynchronous)
    verdict, book = asyncio.run(run.run(given.failovers))
    _report(run, verdict, book)
    if verdict.wrong:
        print(
            f"failed: python -m chaos.failover --seed {given.seed} --failovers {given.failovers}; see {path}"
        )
        return False
    shutil.rmtree(path)
    print("passed")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos.failover", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--failovers", type=int, default=3)
    parser.add_argument(
        "--asynchronous", action="store_true", help="no commit waits for the standby: see what that loses"
    )
    sys.exit(0 if _one(parser.parse_args()) else 1)


if __name__ == "__main__":
    main()
