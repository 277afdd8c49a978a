"""Where it ran: the machine, its load, and the versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("pgnexus", "psycopg", "pgmq", "aiohttp", "pydantic")


def machine() -> dict[str, Any]:
    """Where it ran; the load shows whether it had the machine to itself."""
    model, memory = "", 0
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_mb": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "load_at_start": os.getloadavg()[0],
    }


def _commit() -> str | None:
    """What was checked out, with a + where files are changed; None outside of a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=Path(__file__).parent, capture_output=True,
            text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "from source"
