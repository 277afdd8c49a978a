"""The embedded server: on demand, shared, stopped by the last one, and back after kill -9."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pgnexus.db import binaries
from pgnexus.db.database import Database
from pgnexus.db.embedded import EmbeddedServer
from pgnexus.db.listener import Listener
from pgnexus.errors import DatabaseUnavailable, UnsuitableDatabase

QUICK = {"fsync": "off", "shared_buffers": "16MB"}
CHILD = """
import sys
from pgnexus.db.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1], sys.argv[2] or None, settings={"fsync": "off", "shared_buffers": "16MB"})
print(server.start(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def make(server_dir: Path, pg_bin: Path | None) -> Iterator[Callable[..., EmbeddedServer]]:
    """Makes handles on the same server, and stops them all in the end."""
    made: list[EmbeddedServer] = []

    def _make(path: Path | None = None, **settings: str) -> EmbeddedServer:
        made.append(EmbeddedServer(path or server_dir, pg_bin, settings={**QUICK, **settings}))
        return made[-1]

    yield _make
    for server in made:
        server.stop()


@pytest.fixture
def child(server_dir: Path, pg_bin: Path | None) -> Iterator[subprocess.Popen[str]]:
    """Another process that has joined the server; it leaves when its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(server_dir), str(pg_bin or "")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().startswith("postgresql://")
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def postmaster(server_dir: Path) -> int:
    return int((server_dir / "postgresql" / "postmaster.pid").read_text().splitlines()[0])


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ends(pid: int) -> bool:
    """Whether it ends within seconds: a server removes its pid file a moment before."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 10)[0])
    finally:
        os.close(process)


def ask(url: str, statement: str = "SELECT current_database()") -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        found = cursor.fetchone() if cursor.description else None
        return found[0] if found else None


def test_it_starts_on_demand_and_the_last_one_stops_it(make, server_dir: Path) -> None:
    first, second = make(), make()
    url = first.start()
    assert ask(url) == "pgnexus"
    assert second.start() == url
    pid = postmaster(server_dir)
    assert first.stop() is False
    assert ask(url) == "pgnexus"
    assert second.stop() is True
    assert ends(pid)
    with make() as third:
        assert ask(third.url) == "pgnexus"


def test_it_is_private_and_apart(make, server_dir: Path) -> None:
    make().start()
    pid = postmaster(server_dir)
    assert os.getsid(pid) != os.getsid(0)  # Ctrl-C in the terminal does not reach it
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [path for path in held if path.endswith(".lock")]
    found = (server_dir / "postgresql").stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid != 0
    assert Path(f"/proc/{pid}").stat().st_uid == found.st_uid
    assert ask(make().start(), "SHOW listen_addresses") == ""


def test_processes_share_it_and_the_last_one_stops_it_at_exit(make, child, server_dir: Path) -> None:
    server = make()
    url = server.start()
    pid = postmaster(server_dir)
    assert server.stop() is False
    assert ask(url) == "pgnexus"
    child.stdin.close()
    assert child.wait() == 0
    assert ends(pid)


def test_a_server_whose_users_were_all_killed_is_adopted(make, child, server_dir: Path) -> None:
    pid = postmaster(server_dir)
    child.kill()
    child.wait()
    assert runs(pid)
    server = make()
    assert ask(server.start()) == "pgnexus"
    assert postmaster(server_dir) == pid
    assert server.stop() is True
    assert ends(pid)


def test_after_kill_9_of_everything_the_data_is_there(make, child, server_dir: Path) -> None:
    server = make()
    url = server.start()
    ask(url, "CREATE TABLE kept AS SELECT 42 AS n")
    child.kill()
    child.wait()
    os.kill(postmaster(server_dir), signal.SIGKILL)
    assert ask(server.start(), "SELECT n FROM kept") == 42


@pytest.mark.parametrize("holder", ["ourselves", "init", "nobody"])
def test_a_stale_pid_is_passed_over_whoever_has_it_now(make, server_dir: Path, holder: str) -> None:
    server = make()
    server.start()
    pid = {"ourselves": str(os.getpid()), "init": "1", "nobody": "4000000"}[holder]
    lines = (server_dir / "postgresql" / "postmaster.pid").read_text().splitlines()
    server.stop()
    (server_dir / "postgresql" / "postmaster.pid").write_text("\n".join([pid, *lines[1:]]) + "\n")
    (server_dir / "postgresql" / ".s.PGSQL.5432.lock").write_text(pid + "\n")
    assert ask(make().start()) == "pgnexus"


def test_a_half_made_data_directory_is_made_anew(make, server_dir: Path) -> None:
    (server_dir / "postgresql.new").mkdir()
    (server_dir / "postgresql.new" / "PG_VERSION").write_text("18\n")
    assert ask(make().start()) == "pgnexus"


def test_a_long_path_gets_its_socket_elsewhere(make, server_dir: Path) -> None:
    long = server_dir / ("x" * 60) / ("y" * 60)
    server = make(long)
    url = server.start()
    assert ask(url) == "pgnexus"
    again = make(long)
    assert again.start() == url
    socket_dir = Path(psycopg.conninfo.conninfo_to_dict(url)["host"])
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    assert [handle.stop() for handle in (server, again)] == [False, True]
    assert not socket_dir.exists()


def test_a_server_whose_socket_was_cleaned_away_is_started_again(make, server_dir: Path) -> None:
    server = make()
    server.start()
    (server_dir / "postgresql" / ".s.PGSQL.5432").unlink()
    assert ask(make().start()) == "pgnexus"


def test_a_socket_directory_of_somebody_else_is_refused(make, server_dir: Path) -> None:
    long = server_dir / ("x" * 60) / ("y" * 60)
    server = make(long)
    socket_dir = Path(psycopg.conninfo.conninfo_to_dict(server.start())["host"])
    server.stop()
    socket_dir.mkdir(mode=0o755)
    try:
        with pytest.raises(UnsuitableDatabase, match="belongs to somebody else"):
            server.start()
    finally:
        socket_dir.rmdir()


def test_another_major_version_is_refused(make, server_dir: Path) -> None:
    with make():
        pass
    version = server_dir / "postgresql" / "PG_VERSION"
    version.write_text("13\n")
    with pytest.raises(UnsuitableDatabase, match=r"PostgreSQL 13.*pg_dump"):
        make().start()


def test_a_server_that_does_not_start_shows_its_log(make) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"does not start:(.|\n)*shared_buffers"):
        make(shared_buffers="nonsense").start()


def test_a_failing_initdb_shows_its_words(server_dir: Path, pg_bin: Path | None) -> None:
    server = EmbeddedServer(server_dir, _failing_programs(server_dir))
    with pytest.raises(UnsuitableDatabase, match=r"initdb failed(.|\n)*No space left on device"):
        server.start()
    assert server.stop() is False


def _failing_programs(directory: Path) -> Path:
    programs = directory / "bin"
    programs.mkdir(mode=0o755)
    script = '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "No space left on device"\nexit 1\n'
    (programs / "initdb").write_text(script)
    (programs / "initdb").chmod(0o755)
    return programs


def test_programs_that_are_not_there_are_an_error_with_advice(server_dir: Path, monkeypatch) -> None:
    with pytest.raises(UnsuitableDatabase, match="PGNEXUS_DATABASE_URL"):
        EmbeddedServer(server_dir, server_dir).start()
    monkeypatch.setattr(binaries, "find_spec", lambda name: None)
    with pytest.raises(UnsuitableDatabase, match=r"pip install 'pgnexus\[embedded\]'"):
        EmbeddedServer(server_dir).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="root's server runs as another user")
def test_a_directory_closed_to_the_servers_user_is_refused_and_stays_closed(server_dir: Path) -> None:
    closed = server_dir / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UnsuitableDatabase, match="cannot enter"):
        EmbeddedServer(closed / "data").start()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="root's server runs as another user")
def test_programs_closed_to_the_servers_user_are_copied_once(
    server_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """As in a virtual environment under root's home; the test's own directory is closed as well."""
    package = binaries._package_dir()
    site = tmp_path / "site"
    (site / package.parent.name).mkdir(parents=True)
    tmp_path.chmod(0o700)
    subprocess.run(["cp", "-a", str(package), str(site / package.parent.name)], check=True)
    subprocess.run(["cp", "-a", f"{package.parent}.libs", str(site)], check=True)
    monkeypatch.setattr(binaries, "_package_dir", lambda: site / package.parent.name / package.name)
    monkeypatch.setattr(binaries, "SYSTEM_DIR", server_dir / "system")
    with EmbeddedServer(server_dir, settings=QUICK) as server:
        assert ask(server.url) == "pgnexus"
    [copy] = (server_dir / "system").iterdir()
    made = copy.stat().st_mtime_ns
    with EmbeddedServer(server_dir, settings=QUICK) as server:
        assert ask(server.url) == "pgnexus"
    assert copy.stat().st_mtime_ns == made


async def test_a_standby_is_refused(make, server_dir: Path) -> None:
    with make():
        pass
    (server_dir / "postgresql" / "standby.signal").touch()
    with pytest.raises(UnsuitableDatabase, match="read-only standby; point database_url at the primary"):
        await Database.open(make().start())


async def _ask_for_ever(db: Database) -> None:
    while True:
        await db.query("check_server")


async def test_pool_and_listener_outlive_a_killed_server(make, server_dir: Path) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    server = make()
    db = await Database.open(server.start())
    listener = Listener(db.url)
    listener.subscribe("work", heard.put_nowait)
    await listener.start()
    assert await heard.get() == ""
    os.kill(postmaster(server_dir), signal.SIGKILL)
    with pytest.raises(DatabaseUnavailable, match="pgnexus"):
        await _ask_for_ever(db)
    server.start()
    assert await db.query("check_server")
    assert await heard.get() == ""
    await db.query("notify", {"channel": "work", "payload": "again"})
    assert await heard.get() == "again"
    await listener.stop()
    await db.close()
