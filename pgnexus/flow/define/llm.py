"""A step that asks a model: its handler makes the prompt, and nobody holds a worker until the answer is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from pgnexus.errors import InvalidFlow, StepFailed
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.options import CommonSettings, StepOptions
from pgnexus.flow.define.prompt import Answer, PromptSettings, deferral
from pgnexus.flow.define.signature import Signature
from pgnexus.flow.define.step import HandlerStep
from pgnexus.flow.define.values import Codec
from pgnexus.messages import LLMResult

P = ParamSpec("P")
R = TypeVar("R")

_OF_PROMPT = PromptSettings.__annotations__.keys()


class LLMSettings(PromptSettings, CommonSettings, total=False):
    """What an LLM step says of its prompts, and of itself as a step. ``timeout`` is the answer's."""

    slug: str


class LLMStep(HandlerStep[P, R]):
    """A step whose output is a model's answer to the prompt that its handler makes."""

    kind = "llm"

    def __init__(
        self,
        slug: str,
        handler: Callable[P, R],
        signature: Signature,
        *,
        where: str,
        settings: Mapping[str, Any],
        output: Codec,
        is_map: bool,
    ) -> None:
        own = {name: value for name, value in settings.items() if name not in _OF_PROMPT and name != "slug"}
        options = StepOptions.make(where, own)
        super().__init__(slug, handler, signature, options=options, output=output, is_map=is_map)
        self.returns = answer_kind(output)
        self.field: str | None = None
        asked = {name: value for name, value in settings.items() if name in _OF_PROMPT and value is not None}
        if self.returns == "json" and "response_format" not in asked:
            asked["response_format"], self.field = asked_format(slug, output.json_schema())
        self.settings = asked
        try:
            deferral("a trial of the settings", asked, self.returns, self.field)
        except StepFailed as error:
            raise InvalidFlow(f"{where}: {error}") from None

    async def call(self, input: Any, flow_input: Any, context: Context) -> Later:
        answer = await super().call(input, flow_input, context)
        try:
            return deferral(answer, self.settings, self.returns, self.field)
        except StepFailed as error:
            raise StepFailed(f"step {self.slug}: {error}") from None


def answer_kind(output: Codec) -> Answer:
    """What of a model's answer becomes the output, by the type that the step returns."""
    if output.annotation is str:
        return "text"
    return "result" if output.annotation is LLMResult else "json"


def asked_format(slug: str, schema: dict[str, Any] | None) -> tuple[dict[str, Any], str | None]:
    """How a model is asked for JSON of a schema, and the field of its answer that has it.

    Vendors take schemas of objects only: other types travel in the field ``value`` of one.
    """
    if schema is None:
        return {"type": "json_object"}, None
    field = None
    if schema.get("type") != "object":
        field = "value"
        inner = {key: part for key, part in schema.items() if key != "$defs"}
        schema = {key: part for key, part in schema.items() if key == "$defs"} | {
            "type": "object",
            "properties": {field: inner},
            "required": [field],
            "additionalProperties": False,
        }
    return {"type": "json_schema", "json_schema": {"name": slug[:64], "schema": schema}}, field
