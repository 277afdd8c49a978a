"""Nexus side, an input of the choice of a model: what a request asks of one beside an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pgnexus.messages import ApiVersion, LLMRequest
from pgnexus.providers.catalogue import Vendor
from pgnexus.providers.models import ModelCard

_CHARACTERS_A_TOKEN: Final = 8  # more than any tokenizer gets into one, over a prompt of words
_SHORT: Final = 4096  # tokens; a prompt so short fits nearly everywhere, and is not looked at again


@dataclass(frozen=True, slots=True)
class Needs:
    """What a request asks of a model; ``prompt_tokens`` are what its prompt has at the very least."""

    vision: bool = False
    api: ApiVersion | None = None
    tools: bool = False
    json_schema: bool = False
    prompt_tokens: int = 0

    @classmethod
    def of(cls, request: LLMRequest) -> Needs:
        form = request.response_format
        return cls(
            vision=request.has_images,
            api=request.api_version,
            tools=bool(request.tools),
            json_schema=form is not None and form["type"] == "json_schema",
            prompt_tokens=least_tokens(request),
        )

    def unmet(self, vendor: Vendor, card: ModelCard) -> str | None:
        """What the model is known not to do, its context aside; None when nothing is."""
        if self.vision and card.vision is False:
            return "takes no images"
        if self.tools and card.tools is False:
            return "calls no tools"
        if self.json_schema and card.json_schema is False:
            return "keeps to no JSON schema"
        if self.api is not None and self.api not in vendor.speaks(card.model):
            return f"does not speak the {self.api} API"
        return None

    def too_long(self, context_length: int | None) -> str | None:
        """Why the prompt cannot fit into that context; None when it may."""
        if context_length is None or self.prompt_tokens <= context_length:
            return None
        return f"takes {context_length:,} tokens, and the prompt has {self.prompt_tokens:,} at least"


def least_tokens(request: LLMRequest) -> int:
    """Fewer tokens than any model counts for the prompt's words; pictures and tools are not counted.

    It only rules out what cannot fit. What costs or limits need is an estimate, and another one.
    """
    texts = [text for message in request.messages for text in _texts(message.content)]
    tokens = sum(map(len, texts)) // _CHARACTERS_A_TOKEN
    if tokens <= _SHORT:
        return tokens
    # long rulers and rows of spaces are one token, but no token goes over from one word to the next
    return min(tokens, sum(len(text.split()) for text in texts))


def _texts(content: str | list[dict[str, Any]] | None) -> Iterator[str]:
    if isinstance(content, str):
        yield content
        return
    for part in content or ():
        if isinstance(text := part.get("text"), str):
            yield text
