"""A virtual environment for each peer, made on first use and again when its row changes."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

from benchmarks.peers.rows import Peer, shared_requirements

HOME = Path(__file__).parent.parent.parent / ".venv" / "peers"


class PeerMissing(Exception):
    """A peer cannot take part; the text says why."""


async def environment(peer: Peer, folder: Path = HOME) -> Path:
    """The Python of the environment in ``folder`` in which ``peer`` is installed; raises PeerMissing."""
    home, requirements = folder / peer.name, (*shared_requirements(), *peer.requirements)
    python, stamp = home / "bin" / "python", home / "installed.json"
    wanted = json.dumps([sys.version, *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    await _run("making its environment", sys.executable, "-m", "venv", str(home))
    await _run(
        "installing it",
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *requirements,
    )
    stamp.write_text(wanted)
    return python


async def _run(what: str, *command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        raise PeerMissing(f"{what} failed: {' / '.join(lines[-3:])}")
