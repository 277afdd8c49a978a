"""Whatever bytes a vendor sends, its call ends as a completion that can be stored, or as a `ProviderError`."""

from __future__ import annotations

import json
import os
import random
import resource

import pytest

from pgnexus import storable
from pgnexus.errors import ProviderError
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.providers import build_providers
from pgnexus.settings import Settings
from tests.fuzz.rubbish_vendor import FIXED, bomb, drawn, rubbish

SEED = int(os.environ.get("PGNEXUS_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
WAYS = [("chat_completions", False), ("chat_completions", True), ("responses", False), ("responses", True)]
LONGEST = 2000  # characters of what is said of it


@pytest.fixture
def asked():
    """Ask a vendor that answers with these bytes, in each of the four ways."""

    async def ask(body: bytes) -> list[str]:
        ends = []
        async with rubbish(body) as url:
            rows = Settings(
                providers={"openai": {"base_url": url, "needs_key": False}}, max_message_bytes=4_000_000
            )
            provider = build_providers(rows, {})["openai"]
            for api, streamed in WAYS:
                ends.append(await ended(provider, api, streamed))
            await provider.close()
        return ends

    return ask


async def ended(provider, api, streamed) -> str:
    messages = [{"role": "user", "content": "Hello"}]
    request = LLMRequest(request_id=new_request_id(), messages=messages, api_version=api, stream=streamed)
    deltas = []
    extra = {"on_delta": deltas.append} if streamed else {}
    failure = None
    try:
        got = await provider.complete(request, "gpt-4o", timeout=10, **extra)
    except ProviderError as error:
        failure = error
    if failure is not None:
        assert len(str(failure)) < LONGEST
        storable.check(str(failure), "error")
        return failure.type
    stored = {"message": got.message, "text": got.text, "model": got.model, "reason": got.finish_reason}
    storable.check(stored, "completion")
    json.dumps(stored, allow_nan=False)
    assert 0 <= got.usage.prompt_tokens <= got.usage.total_tokens < 2**31
    return "success"


@pytest.mark.parametrize("name", FIXED)
async def test_broken(asked, name):
    ends = await asked(FIXED[name])
    assert "success" not in ends, ends


async def test_rubbish_in_each_field(asked):
    """Some dozens of drawn answers; the seed is in the failure."""
    for number in range(60):
        try:
            await asked(drawn(SEED + number))
        except BaseException as error:
            error.add_note(f"seed {SEED + number}")
            raise


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_small_body_that_is_a_large_one(asked, coding):
    body = bomb(coding)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = await asked(body)
    assert "success" not in ends
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < 60, f"{grown} MB for {len(body)} bytes"
