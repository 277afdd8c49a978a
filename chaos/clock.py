"""Inside one process: its wall clock, which jumps while it runs; the monotonic clock goes on as ever.

libfaketime does it, preloaded into the process: PyPI's `libfaketime` brings it along, Debian's package will do.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

MISSING = "libfaketime is not installed: pip install libfaketime, or apt-get install libfaketime"
SEEN_WITHIN = 2.0  # seconds after a jump in which the process knows of it


def library() -> Path | None:
    """The library to preload, or None; see `MISSING`."""
    spec = find_spec("libfaketime")  # found, not imported: its import is for faking one's own clock
    packages = spec.submodule_search_locations or [] if spec else []
    vendored = [Path(package) / "vendor/libfaketime/src/libfaketime.so.1" for package in packages]
    debian = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return next((path for path in (*vendored, *debian) if path.is_file()), None)


class Clock:
    """The wall clock of the processes that are started with its `environment`; ``path`` holds its offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0.0
        self._write()
        _sweep()

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to go by this clock; raises RuntimeError where it cannot."""
        found = library()
        if found is None:
            raise RuntimeError(MISSING)
        return {
            "LD_PRELOAD": " ".join(filter(None, (str(found), os.environ.get("LD_PRELOAD")))),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": "0",  # looks again with every second
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # the same, for older versions
            "NO_FAKE_STAT": "1",  # files keep their times
        }

    def jump(self, seconds: float) -> None:
        """Set it forward, or backward, by so much from where it is now."""
        self._offset += seconds
        self._write()

    def _write(self) -> None:
        draft = self._path.with_suffix(".draft")
        draft.write_text(f"{self._offset:+.3f}\n")
        draft.replace(self._path)  # never half a line


def _sweep() -> None:
    """Remove what processes that were killed have left of their clocks in shared memory."""
    for left in Path("/dev/shm").glob("*faketime_s[he]m_*"):
        pid = left.name.rpartition("_")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            left.unlink(missing_ok=True)
