"""`python -m chaos.upgrade [--seed N] [--from VERSION]`: an upgrade under load must not be noticed."""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from chaos.crew.audit import Verdict
from chaos.upgrade.releases import RELEASES
from chaos.upgrade.run import UpgradeRun


def _report(run: UpgradeRun, verdict: Verdict) -> list[str]:
    """Print it; what is wrong."""
    since, beside = run.calls_of_old()
    before, during = run.stalled()
    took = run.migrated[1] - run.migrated[0]
    for line in verdict.lines():
        print(line)
    print(f"calls by old workers: {since} on the new schema, {beside} of them beside new workers")
    print(
        f"the migration took {took:.2f} s; the longest acceptance {before:.2f} s before, {during:.2f} s meanwhile"
    )
    for complaint, times in run.complaints().most_common(12):
        print(f"an old one said {times} times: {complaint}")
    wrong = verdict.wrong + (["the old workers served nobody on the new schema"] if not beside else [])
    for fault in wrong[:40]:
        print(f"WRONG {fault}")
    return wrong


def _one(seed: int, version: str) -> bool:
    path = Path(tempfile.mkdtemp(prefix=f"pgnexus-upgrade-{seed}-"))
    path.chmod(0o755)
    print(f"seed {seed}, from {version}, in {path}", flush=True)
    run = UpgradeRun(path, random.Random(f"{seed} {version}"), RELEASES[version])
    verdict, _ = asyncio.run(run.run())
    if _report(run, verdict):
        print(f"failed: python -m chaos.upgrade --seed {seed} --from {version}; see {path}")
        return False
    shutil.rmtree(path)
    print("passed")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m chaos.upgrade", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--from", dest="version", choices=[*RELEASES, "all"], default="all")
    given = parser.parse_args()
    versions = list(RELEASES) if given.version == "all" else [given.version]
    passed = [_one(given.seed, version) for version in versions]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
