"""Settings files, the environment, the metrics server, the command line: rubbish is refused, and harms nothing."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from contextlib import suppress

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from system import sql

from pgnexus.errors import PgnexusError
from pgnexus.settings import Settings
from pgnexus.telemetry.counters import Counter
from pgnexus.telemetry.meters import Meters
from pgnexus.telemetry.prometheus import registry
from pgnexus.watch.metrics_server import MetricsServer
from tests.fuzz.hostile import INJECTIONS, NUMBERS

FILES = [
    *(
        b"",
        b"\xff\xfe",
        b"\x00",
        b"[",
        b"[[providers]]",
        b"=",
        b"a" * 100_000,
        b'providers = "x"',
        b"providers = 5",
    ),
    *(b"[providers.x]\nbase_url = 5", b'database_url = ["x"]', b"pool_size = 1e400", b"pool_size = nan"),
    *(
        b"pool_size = -9223372036854775808",
        b"routes.simple = 5",
        b"[routes.simple]\nmodels = [5]",
        b"a = 1\na = 2",
    ),
    *(
        b"nonsense = 1",
        b'[limits."agent:*"]\ncalls_per_minute = -1',
        b"poll_interval = inf",
        b"a = " + b"[" * 2000,
    ),
    *(b'default_provider = "\\u001b[2J"', b'reply_to = "x\\n"', b"flows = 5", b"[models]\n'a/b' = []"),
]
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
REQUESTS = [
    *(b"", b"\x00" * 1000, b"GET\r\n\r\n", b"GET /metrics\r\n\r\n", b"BREW /pot HTTP/1.1\r\n\r\n"),
    *(b"GET /metrics HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n"),
    *(b"GET /metrics?name[]=%ff&name[]=\x1b HTTP/1.1\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\n\r\n"),
    b"GET /metrics HTTP/1.1\r\nAccept: " + b"a;q=1e400," * 1000 + b"\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\nx",
    b"GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip, rot13\r\n\r\n",
]


def loaded() -> str:
    """What the settings say of themselves: nothing, or one line."""
    said = ""
    try:
        Settings.load()
    except PgnexusError as error:
        said = str(error)
    return said


@pytest.mark.parametrize("content", FILES, ids=range(len(FILES)))
def test_settings_files(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pgnexus.toml").write_bytes(content)
    assert len(loaded()) < 5000


def test_settings_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = random.Random(1)
    for name in Settings.model_fields:
        for value in drawn.sample((*INJECTIONS, *NUMBERS, "{", "[]", '{"x": {"base_url": 5}}'), 8):
            monkeypatch.setenv(f"PGNEXUS_{name.upper()}", value)
            assert len(loaded()) < 50_000
        monkeypatch.delenv(f"PGNEXUS_{name.upper()}")
    assert loaded() == ""


async def talk(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = b""
    with suppress(OSError):  # it may hang up at any moment
        writer.write(request)
        writer.write_eof()
        async with asyncio.timeout(20):
            answered = await reader.read()
    writer.close()
    return answered


async def test_the_metrics_server(database_url):
    async with MetricsServer("127.0.0.1", 0, database_url, lease=10) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        _, idle = await asyncio.open_connection(
            "127.0.0.1", port
        )  # who says nothing keeps nobody else waiting
        for request in REQUESTS:
            await talk(port, request)
            assert b"passwd" not in await talk(port, request)
        assert b"200 OK" in await talk(port, GET)
        idle.close()


def test_labels_are_only_labels():
    """Prometheus reads back what was counted, whatever the names in it."""
    meters = Meters()
    for words in INJECTIONS:
        meters.calls.add(words, words, "success")
    text = generate_latest(registry(meters)).decode()
    found = [
        sample.labels["model"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "pgnexus_provider_calls_total"
    ]
    assert sorted(found) == sorted(INJECTIONS)
    assert isinstance(meters.calls, Counter)


async def test_the_command_line(database_url, db, tmp_path):
    """Names with escape codes in them, stored by others, are shown; none of the codes reaches whoever reads."""
    words = [text for text in INJECTIONS if text.strip()]
    await sql(
        db,
        """insert into pgnexus.job_results (
             request_id, status, workflow, agent_id, model, task_type, input, output, error, finished_at, enqueued_at)
           select gen_random_uuid(), 'failed', 'x', left(w, 200), w, w, jsonb_build_object('messages', w), '{}',
                  jsonb_build_object('type', w, 'message', w), now(), now() from unnest(%s::text[]) as w""",
        words,
    )
    await sql(
        db,
        """insert into nexus.attempts (
             request_id, attempt, call, instance_id, provider, model, outcome, started_at, duration_ms, agent_id,
             task_type)
           select gen_random_uuid(), 1, 1, gen_random_uuid(), w, w, left(w, 50), now(), 1, left(w, 200), w
           from unnest(%s::text[]) as w""",
        words,
    )
    for arguments in (
        ["requests"],
        ["costs", "--by", "agent,model"],
        ["queues"],
        ["models"],
        ["result", "\x1b[2J"],
        ["cancel", "x\ny"],
        ["--nonsense"],
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pgnexus", *arguments),
            cwd=tmp_path,
            env=os.environ | {"PGNEXUS_DATABASE_URL": database_url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert b"Traceback" not in err
        assert not [byte for byte in out + err if byte < 32 and byte != 10], (arguments, out[:500], err[:500])
        assert b"\xc2\x9b" not in out + err
