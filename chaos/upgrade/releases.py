"""Earlier versions of pgnexus, each built as a wheel from its commit and installed in an environment of its own."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "releases"


@dataclass(frozen=True)
class Release:
    """A version that was given to users, and the commit that it was built from."""

    version: str
    commit: str

    @property
    def python(self) -> Path:
        """The interpreter that has this version, once `install` has returned."""
        return self._home / "bin" / "python"

    @property
    def _home(self) -> Path:
        return CACHE / f"{self.version}-{self.commit}"

    def install(self) -> Path:
        """Build and install it, unless that was done before; its interpreter. Takes half a minute."""
        if (self._home / "whole").exists():
            return self.python
        shutil.rmtree(self._home, ignore_errors=True)
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "source"
            with tarfile.open(fileobj=io.BytesIO(_output("git", "archive", self.commit))) as archive:
                archive.extractall(source, filter="data")
            _output(sys.executable, "-m", "build", "--wheel", "--outdir", scratch, str(source))
            [wheel] = Path(scratch).glob("*.whl")
            _output(sys.executable, "-m", "venv", str(self._home))
            _output(str(self.python), "-m", "pip", "install", "--quiet", f"{wheel}[providers]")
        (self._home / "whole").touch()
        return self.python


RELEASES = {
    release.version: release
    for release in (Release("0.1.0", "554ce17"), Release("0.2.0", "c6b6689"), Release("0.3.0", "6e51f35"))
}


def _output(*command: str) -> bytes:
    """What a program writes; what it complained of when it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr).decode()[-4000:]}")
    return done.stdout
