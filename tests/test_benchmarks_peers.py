"""What a peer's program and its driver are made of; the peers themselves are not installed for it."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from benchmarks.peers.entrant import as_url
from benchmarks.peers.environments import PeerMissing, environment
from benchmarks.peers.programs import talk
from benchmarks.peers.programs.talk import Answers, Task
from benchmarks.peers.rows import PEERS, Peer

_SQL = Path(talk.__file__).parent.parent / "sql"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: str(peer.name))
def test_a_row_is_whole(peer: Peer) -> None:
    assert find_spec(f"benchmarks.peers.programs.{peer.program}") is not None
    assert (_SQL / f"{peer.count}.sql").exists()
    assert all("==" in requirement for requirement in peer.requirements)


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=/tmp/a-b/c port=5433 user=postgres dbname=x",
        "host=10.0.0.1 port=5432 user=u password='p@/ :' dbname=x",
    ],
)
def test_a_url_says_what_the_connection_string_said(conninfo: str) -> None:
    assert conninfo_to_dict(as_url(conninfo)) == conninfo_to_dict(conninfo)


@pytest.mark.soak
async def test_what_cannot_be_installed_is_told_with_its_reason(tmp_path: Path) -> None:
    peer = Peer("nobody", (str(tmp_path / "no-such-package"),), "with_nobody", "answers_count", told=True)

    with pytest.raises(PeerMissing, match=r"installing it failed: .*no-such-package"):
        await environment(peer, tmp_path)

    assert not (tmp_path / "nobody" / "installed.json").exists()


async def test_answers_that_come_together_are_committed_together(empty_database_url: str) -> None:
    task = Task(empty_database_url, "", "", 1)
    await talk.make_answers(task)

    async with talk.waiting(task) as waiting, talk.connected(empty_database_url) as connection:
        answers = Answers(connection)

        async def all_of_them() -> None:
            await asyncio.gather(*(answers.store(number, '{"choices": []}') for number in (1, 2, 3, 3)))

        got = await waiting.answer(3, all_of_them)
        rows = await (await connection.execute("SELECT number, xmin::text FROM peer_answers")).fetchall()

    assert got == '{"choices": []}'
    assert sorted(number for number, _ in rows) == [1, 2, 3]
    assert len({transaction for _, transaction in rows}) == 1


async def test_a_store_that_fails_fails_for_all_that_wait(empty_database_url: str) -> None:
    async with talk.connected(empty_database_url) as connection:  # where there is no table
        answers = Answers(connection)

        found = await asyncio.gather(
            *(answers.store(number, "{}") for number in (1, 2)), return_exceptions=True
        )

    assert all(isinstance(error, psycopg.errors.UndefinedTable) for error in found)
