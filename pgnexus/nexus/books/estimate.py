"""Nexus side, before each provider call: what it may use, so that it can be reserved.

A guess that is cheap to make and rather too high: a token for three bytes of UTF-8 (English has about four, Chinese
three), some for each message, a constant for an image, and the longest answer that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic_core import to_json

from pgnexus.messages import LLMRequest, Message, Usage
from pgnexus.nexus.books.attempt import Estimate
from pgnexus.providers.catalogue import Vendor
from pgnexus.providers.models import card
from pgnexus.providers.prices import cost
from pgnexus.settings import Settings

_BYTES_A_TOKEN: Final = 3
_TOKENS_A_MESSAGE: Final = 8
_LONGEST_ANSWER: Final = 2**31 - 1  # tokens; what a request allows may be any number
_TOKENS_AN_IMAGE: Final = 1600  # about the most that vendors take for one that they have made smaller
_IMAGES: Final = ("image_url", "input_image")


def estimate(request: LLMRequest, vendor: Vendor, model: str, settings: Settings) -> Estimate:
    """What asking the vendor's ``model`` may use; its cost is None where no price is known.

    The answer counts as long as ``max_tokens``, without it ``reserve_output_tokens`` of the settings; never longer
    than the model's longest.

    >>> from pgnexus.providers.catalogue import catalogue
    >>> from pgnexus.messages import new_request_id
    >>> asked = [{"role": "user", "content": "What is the capital of France?"}]
    >>> request = LLMRequest(request_id=new_request_id(), messages=asked, max_tokens=100)
    >>> estimate(request, catalogue(Settings())["openai"], "gpt-4o", Settings())
    Estimate(prompt_tokens=18, completion_tokens=100, cost=Decimal('0.001045'))
    """
    prompt = prompt_tokens(request)
    completion = min(request.max_tokens or settings.reserve_output_tokens, _LONGEST_ANSWER)
    longest = card(vendor, model, settings).max_output_tokens
    if longest is not None:
        completion = min(completion, longest)
    # not validated: this runs before each call
    usage = Usage.model_construct(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )
    return Estimate(prompt, completion, cost(vendor, model, usage, settings))


def prompt_tokens(request: LLMRequest) -> int:
    """About how many tokens the request's prompt has, rather too many than too few."""
    size = images = 0
    for message in request.messages:
        if isinstance(message.content, str):
            size += _size(message.content)
        else:
            for part in message.content or ():
                if part.get("type") in _IMAGES:
                    images += 1
                else:
                    size += sum(map(_size, _texts(part)))
        if message.tool_calls:
            size += _size_of_tool_calls(message)
    for described in (request.tools, request.response_format):
        if described:
            size += len(to_json(described))
    return -(-size // _BYTES_A_TOKEN) + _TOKENS_A_MESSAGE * len(request.messages) + _TOKENS_AN_IMAGE * images


def _size(text: str) -> int:
    """Bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _size_of_tool_calls(message: Message) -> int:
    return sum(len(to_json(call.function)) for call in message.tool_calls or ())


def _texts(value: Any) -> Iterator[str]:
    """The texts in a part of a message, whatever its form."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            if key != "type":
                yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
