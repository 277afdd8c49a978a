"""Look into the server and the worker while they work: statements, functions, WAL, tables, Python.

python -m benchmarks.profile [--load bulk] [--requests 5000] [--out DIRECTORY]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.profile.load import LOADS, Profile, profile
from benchmarks.profile.report import text
from benchmarks.profile.sampling import sampler
from benchmarks.profile.server import DEBIAN, telling_server
from benchmarks.stage.database import MeasuredDatabase
from benchmarks.stage.provider_server import provider_server


async def _profile(url: str, given: argparse.Namespace, stacks: Path | None) -> Profile:
    async with provider_server(given.delay) as provider:
        return await profile(MeasuredDatabase(url), provider, given.load, given.requests, stacks)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.splitlines()[0])
    parser.add_argument("--load", choices=LOADS, default="bulk")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a call takes")
    parser.add_argument("--top", type=int, default=40, help="how many rows of each table")
    parser.add_argument("--width", type=int, default=150, help="how much of a statement is printed")
    parser.add_argument("--pg-bin", type=Path, default=DEBIAN, help="programs of a PostgreSQL with contrib")
    parser.add_argument("--database-url", help="a server with pg_stat_statements preloaded, instead of these")
    parser.add_argument(
        "--explain", type=float, default=0.0, help="share of statements whose plans are logged"
    )
    parser.add_argument("--python", action="store_true", help="sample the worker, too (py-spy)")
    parser.add_argument("--out", type=Path, help="a directory for all of it: JSON, plans, stacks")
    given = parser.parse_args(arguments)
    if (given.python or given.explain) and given.out is None:
        parser.error("--python and --explain write to files: name a directory with --out")
    if given.python and sampler() is None:
        parser.error("--python needs py-spy: pip install py-spy")
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    stacks = given.out / "stacks.txt" if given.python else None
    with telling_server(given.database_url, given.pg_bin, given.explain) as server:
        found = asyncio.run(_profile(server.url, given, stacks))
        if given.explain and server.log is not None:
            shutil.copyfile(server.log, given.out / "plans.log")
    print(text(found, given.top, given.width, stacks))
    if given.out is not None:
        (given.out / "profile.json").write_text(json.dumps(asdict(found), indent=2, default=float) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
