"""A vendor that echoes its key in every way it can fail: the key is in nothing that is left behind.

Looked through are every table of every schema, what the process wrote, its log at its most talkative with the
locals of each traceback, the results, and the exceptions of callers and wires.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from psycopg import sql as psycopg_sql

from pgnexus.db.database import Database
from pgnexus.errors import ProviderError, RequestError
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.providers import build_providers
from pgnexus.settings import Settings
from tests.system import running, sql

# By vendor: over OpenAI's wire, and through any-llm. They are read from here alone, so that no local holds one.
_KEYS = {
    "openai": "sk-SECRETopenai-0123456789abcdef",
    "anthropic": "sk-ant-SECRETanthropic-0123456789abcdef",
    "gemini": "AIzaSECRETgemini0123456789abcdef",
}
FAULTS = ("401", "400", "403", "429", "500", "302", "rubbish", "cut", "inside", "nothing")
MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-5-5", "gemini": "gemini-3.8-flash"}
PATHS = {"openai": "/v1", "anthropic": "", "gemini": ""}
UP = """
import logging, sys, traceback

class Talkative(logging.Formatter):
    def formatException(self, info):
        return "".join(traceback.TracebackException(*info, capture_locals=True).format())

handler = logging.FileHandler(sys.argv.pop(1))
handler.setFormatter(Talkative("%(name)s %(levelname)s %(message)s"))
logging.basicConfig(level=logging.DEBUG, handlers=[handler])
ours = logging.getLogger("pgnexus")
ours.setLevel(logging.DEBUG)
ours.setLevel = lambda level: None
from pgnexus.cli import main
sys.exit(main())
"""


class Echo:
    """Vendors that say in all they answer which key they were asked with, by a word of the prompt."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        text = (await request.read()).decode()
        fault = next(fault for fault in FAULTS if f"fault {fault}." in text)
        headers = request.headers
        told = [headers.get(name) for name in ("Authorization", "x-api-key", "x-goog-api-key")]
        key = " ".join(value for value in told if value)
        for vendor, real in _KEYS.items():
            if real in key:
                self.seen.add((vendor, fault))
        return await self._answer(request, fault, key)

    async def _answer(self, request: web.Request, fault: str, key: str) -> web.StreamResponse:
        loud = {"X-Echo": key, "Set-Cookie": f"k={key}", "WWW-Authenticate": f"Bearer {key}"}
        error = {"error": {"message": f"wrong: {key}", "type": key, "code": key, "param": key, "status": key}}
        if fault == "cut":
            response = web.StreamResponse(headers=loud | {"Content-Type": "application/json"})
            await response.prepare(request)
            await response.write(json.dumps(error).encode()[:-3])
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "nothing":
            assert request.transport is not None
            request.transport.abort()
        if fault == "302":
            return web.Response(status=302, headers=loud | {"Location": f"http://127.0.0.1:9/?k={key}"})
        if fault == "rubbish":
            return web.Response(text=f"<html>{key}</html>", headers=loud)
        if fault == "inside":
            return web.json_response(error, headers=loud)
        status = int(fault) if fault.isdigit() else 500
        reason = key.encode().hex()  # a reason may hold no blank; its form here is not what is looked for
        return web.json_response(error, status=status, reason=reason, headers=loud)


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[Echo, str]]:
    """The echo, and its root URL."""
    echo = Echo()

    async def handler(request: web.Request) -> web.StreamResponse:
        return await echo(request)

    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield echo, f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def rows(root: str) -> dict[str, Any]:
    wires = {"openai": "openai", "anthropic": "any-llm", "gemini": "any-llm"}
    return {name: {"base_url": root + PATHS[name], "wire": wire} for name, wire in wires.items()}


def leaks(text: str) -> list[str]:
    """The vendors whose key is in a text."""
    return [vendor for vendor, key in _KEYS.items() if key in text]


def laid_bare(error: BaseException) -> str:
    """All that a traceback can show of an error: the locals of our frames, and what it came from, also if hidden."""
    texts, found = [], set()
    stack: list[BaseException | None] = [error]
    while stack:
        one = stack.pop()
        if one is None or id(one) in found:
            continue
        found.add(id(one))
        stack += [one.__cause__, one.__context__]
        frames = traceback.TracebackException.from_exception(one, capture_locals=True, compact=False)
        texts.append("\n".join([repr(one), str(vars(one)), *frames.format()]))
    return "\n".join(texts)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("vendor", _KEYS)
async def test_errors_and_tracebacks_of_a_wire(vendor, stream):
    def ignore(_: Any) -> None:
        pass

    async with echoing() as (echo, root):
        environ = {f"{name.upper()}_API_KEY": key for name, key in _KEYS.items()}
        providers = build_providers(Settings(providers=rows(root)), environ)
        del environ
        provider = providers[vendor]
        found, told = [], []
        for fault in FAULTS:
            messages = [{"role": "user", "content": f"fault {fault}."}]
            request = LLMRequest(request_id=new_request_id(), messages=messages)
            try:
                await provider.complete(
                    request, MODELS[vendor], timeout=20, on_delta=ignore if stream else None
                )
            except ProviderError as error:
                told.append(str(error))
                if leaks(laid_bare(error)):
                    found.append((fault, str(error)))
        for one in providers.values():
            await one.close()
    assert len(told) == len(FAULTS)
    assert echo.seen == {(vendor, fault) for fault in FAULTS}
    assert sum("***" in text for text in told) >= 5  # the echo did reach the errors, without the key
    assert found == []
    assert leaks(repr(providers)) == []


async def test_nothing_that_a_failing_system_leaves_behind(database_url: str, db: Database, tmp_path: Path):
    async with echoing() as (echo, root):
        log = tmp_path / "log"
        up = await start(database_url, root, tmp_path, log)
        results, errors = await ask_everything(database_url)
        up.send_signal(signal.SIGTERM)
        out, _ = await asyncio.wait_for(up.communicate(), 60)
    assert up.returncode == 0, out.decode()
    assert echo.seen == {(vendor, fault) for vendor in _KEYS for fault in FAULTS}
    assert sum("***" in text for text in results) >= 15
    left = {
        "results": "\n".join(results),
        "exceptions": "\n".join(laid_bare(error) for error in errors),
        "output": out.decode(errors="replace"),
        "log": log.read_text(encoding="utf-8"),
    } | await everything(db)
    assert len(left) > 20  # tables
    assert len(left["log"]) > 10_000
    assert {name: leaks(text) for name, text in left.items() if leaks(text)} == {}


async def start(database_url: str, root: str, tmp_path: Path, log: Path) -> asyncio.subprocess.Process:
    """`up` with all that it can say, its keys in the environment and in files; returns when it is ready."""
    files = {name: tmp_path / f"{name}.key" for name in ("anthropic", "gemini")}
    for name, file in files.items():
        file.write_text(_KEYS[name] + "\n")
    config = tmp_path / "pgnexus.toml"
    lines = [
        "max_attempts = 2",
        "retry_base_delay = 0.05",
        "router_retries = 0",
        "local_model = false",
        "breaker_failures = 1000",
    ]
    for name, row in rows(root).items():
        lines += [f"[providers.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in row.items())]
        if name == "gemini":
            lines.append(f"api_key_file = {json.dumps(str(files[name]))}")
    config.write_text("\n".join(lines))
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")} | {
        "PGNEXUS_CONFIG": str(config),
        "OPENAI_API_KEY": _KEYS["openai"],
        "ANTHROPIC_API_KEY_FILE": str(files["anthropic"]),
        "PYTHONASYNCIODEBUG": "1",
        "PYTHONUNBUFFERED": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-c",
            textwrap.dedent(UP),
            str(log),
            "--database-url",
            database_url,
            "--verbose",
            "up",
        ),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    seen = b""
    while b"ready" not in seen:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, seen.decode()
        assert not leaks(line.decode(errors="replace"))
        seen += line
    return process


async def ask_everything(database_url: str) -> tuple[list[str], list[RequestError]]:
    """Every fault of every vendor, also as streams; what callers see of it."""
    results: list[str] = []
    errors: list[RequestError] = []
    async with running(database_url, nexus=False) as service:

        async def one(vendor: str, fault: str) -> None:
            messages = [{"role": "user", "content": f"fault {fault}."}]
            try:
                await service.call(MODELS[vendor], messages, provider=vendor, timeout=60)
            except RequestError as error:
                errors.append(error)
                results.append(repr(error.result))

        async def streamed(vendor: str, fault: str) -> None:
            messages = [{"role": "user", "content": f"fault {fault}."}]
            try:
                async with service.stream(MODELS[vendor], messages, provider=vendor, timeout=60) as chunks:
                    async for chunk in chunks:
                        results.append(repr(chunk))
            except RequestError as error:
                errors.append(error)

        await asyncio.gather(*(one(vendor, fault) for vendor in _KEYS for fault in FAULTS))
        await asyncio.gather(*(streamed(vendor, fault) for vendor in _KEYS for fault in ("401", "cut")))
    return results, errors


async def everything(db: Database) -> dict[str, str]:
    """Every row of every table and queue, as text."""
    tables = await sql(
        db,
        """select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where c.relkind in ('r', 'p', 'm') and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')""",
    )
    found = {}
    async with db.connection() as connection:
        for schema, table in tables:
            query = psycopg_sql.SQL("select t::text as row from {} t").format(
                psycopg_sql.Identifier(schema, table)
            )
            cursor = await connection.execute(query)
            found[f"{schema}.{table}"] = "\n".join(row.row for row in await cursor.fetchall())
    return found
