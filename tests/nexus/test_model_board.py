"""Which models can be asked now, as callers are told: no key, an open breaker, a limit that is met."""

from __future__ import annotations

import pytest
from aiohttp import web

from pgnexus.caller.service import LLMService
from pgnexus.db.database import Database
from pgnexus.errors import RequestTimeout
from pgnexus.messages import ModelInfo
from tests.provider_server import answer, served
from tests.system import running, sql, until


async def told(service: LLMService, provider: str = "openai") -> ModelInfo:
    models = await service.get_available_models()
    return next(info for info in models if (info.provider, info.model) == (provider, "gpt-4o"))


async def test_a_missing_key_is_named(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    async with running(database_url) as service:
        info = await told(service)
    assert (info.usable, "OPENAI_API_KEY" in (info.reason or "")) == (False, True)


async def test_an_open_breaker_is_told_and_its_end_too(database_url: str, db: Database) -> None:
    down = True

    async def vendor(_: web.Request) -> web.Response:
        return web.Response(status=500) if down else web.json_response(answer())

    async with (
        served(vendor) as url,
        running(database_url, url, breaker_failures=2, breaker_seconds=60.0) as service,
    ):
        assert (await told(service)).usable
        for _ in range(2):
            with pytest.raises(RequestTimeout):
                await service.call("gpt-4o", "Hello", timeout=0.5)

        async def reason() -> str | None:
            return (await told(service)).reason

        assert "breaker" in (await until(reason) or "")
        assert (await service.get_available_models())[0].usable  # the vendor's other models can be asked
        down = False
        await sql(db, "update nexus.breakers set open_until = clock_timestamp()")
        await sql(db, "select pg_notify('pgnexus_breakers', '')")
        assert (await service.call("gpt-4o", "Hello", timeout=20)).ok

        async def usable() -> bool:
            return (await told(service)).usable

        await until(usable)


async def test_a_limit_that_is_met_is_told(database_url: str) -> None:
    limits = {"openai/gpt-4o": {"requests_per_minute": 1}}

    async def vendor(_: web.Request) -> web.Response:
        return web.json_response(answer())

    async with served(vendor) as url, running(database_url, url, limits=limits) as service:
        assert (await service.call("gpt-4o", "Hello")).ok
        waiting = await service.enqueue("gpt-4o", "Hello again")

        async def reason() -> str | None:
            return (await told(service)).reason

        assert "requests_per_minute" in (await until(reason) or "")
        assert await waiting.status() == "enqueued"
