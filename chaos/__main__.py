"""`python -m chaos`: rounds of work under faults, each with the next seed, until the time is over."""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from chaos import bouncer, clock, report
from chaos.ledger.verdict import Verdict
from chaos.round import play
from chaos.server import PostgresServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="no round begins after these")
    parser.add_argument("--rounds", type=int, help="so many rounds, instead of minutes")
    parser.add_argument(
        "--round-seconds", type=float, default=45.0, help="of work under faults, in one round"
    )
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the first round"
    )
    parser.add_argument("--out", type=Path, help="an empty directory for all files; else a temporary one")
    given = parser.parse_args()
    sys.exit(asyncio.run(_run(given)))


async def _run(given: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # no process is left behind
    out = _directory(given.out)
    server = PostgresServer(out / "postgres")
    print(f"seed {given.seed}, files in {out}", flush=True)
    for missing in _missing():
        print(f"without {missing}", flush=True)
    await asyncio.to_thread(server.initialise)
    await asyncio.to_thread(server.start)
    try:
        verdicts = await _rounds(given, out, server)
    finally:
        await asyncio.to_thread(server.stop)
    print("\n" + report.of_all(verdicts))
    about = {
        "python": platform.python_version(),
        "postgresql": server.binaries.major,
        "machine": platform.machine(),
    }
    report.write(out / "report.json", verdicts, about)
    red = [one.seed for one in verdicts if not one.green]
    if red:
        print(f"\nRED: seeds {red}; logs and databases are kept in {out}")
        return 1
    await asyncio.to_thread(shutil.rmtree, server.path)
    print(f"\nall {len(verdicts)} green; {out / 'report.json'}")
    return 0


async def _rounds(given: argparse.Namespace, out: Path, server: PostgresServer) -> list[Verdict]:
    verdicts: list[Verdict] = []
    end = time.monotonic() + given.minutes * 60
    while len(verdicts) < given.rounds if given.rounds else time.monotonic() < end:
        seed = given.seed + len(verdicts)
        verdict = await play(seed, given.round_seconds, out / f"round-{seed}", server)
        verdicts.append(verdict)
        print(report.of_round(verdict), flush=True)
    return verdicts


def _directory(given: Path | None) -> Path:
    """Open to others: as root the server runs as another user."""
    if given is None:
        given = Path(tempfile.mkdtemp(prefix="pgnexus-chaos-"))
    given.mkdir(parents=True, exist_ok=True)
    given.chmod(0o755)
    return given.absolute()


def _missing() -> list[str]:
    """What is not installed here, and therefore not part of the run."""
    parts = {"PgBouncer": bouncer.PROGRAM, f"clock jumps ({clock.MISSING})": clock.library()}
    return [name for name, found in parts.items() if found is None]


if __name__ == "__main__":
    main()
