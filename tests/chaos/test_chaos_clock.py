"""A process whose clock jumps while it runs: the wall clock does, the monotonic one does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.clock import MISSING, SEEN_WITHIN, Clock, library

pytestmark = pytest.mark.skipif(library() is None, reason=MISSING)

HOUR = 3600.0
CHILD = """
import datetime, sys, time
for _ in sys.stdin:
    print(time.time(), datetime.datetime.now(datetime.UTC).timestamp(), time.monotonic(), flush=True)
"""


@contextmanager
def child(clock: Clock) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **clock.environment()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def asked(process: subprocess.Popen[str]) -> list[float]:
    """By how many seconds its time.time(), datetime.now() and time.monotonic() are ahead of ours."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    told = [float(word) for word in process.stdout.readline().split()]
    return [
        clock - now for clock, now in zip(told, (time.time(), time.time(), time.monotonic()), strict=True)
    ]


def test_a_child_s_clock_jumps_forward_and_back(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    with child(clock) as process:
        assert asked(process) == pytest.approx([0, 0, 0], abs=60)
        for jump, ahead in ((5 * HOUR, 5 * HOUR), (-8 * HOUR, -3 * HOUR)):
            clock.jump(jump)
            time.sleep(SEEN_WITHIN)  # there is nothing to wait for: it looks with its own seconds
            assert asked(process) == pytest.approx([ahead, ahead, 0], abs=60)


def test_one_started_later_has_the_clock_as_it_is_then(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    clock.jump(-2 * HOUR)
    with child(clock) as process:
        assert asked(process) == pytest.approx([-2 * HOUR, -2 * HOUR, 0], abs=60)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    with child(Clock(tmp_path / "clock")) as process:
        asked(process)
        left = [
            path for path in Path("/dev/shm").iterdir() if path.name.endswith(f"faketime_shm_{process.pid}")
        ]
        process.kill()
    Clock(tmp_path / "another")
    assert len(left) == 1
    assert not left[0].exists()
