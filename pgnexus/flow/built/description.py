"""A flow as JSON, such as a model writes it: its form, its limits, and all that is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json

from pgnexus.errors import InvalidFlow, InvalidRequest
from pgnexus.flow.define.options import When, check_slug
from pgnexus.messages import Complexity
from pgnexus.storable import check

_SLUG = r"^[a-zA-Z_][a-zA-Z0-9_]*$"
Slug = Annotated[str, Field(min_length=1, max_length=128, pattern=_SLUG)]


@dataclass(frozen=True)
class Limits:
    """How large a description may be; ``max_depth`` counts the steps on the longest way through the flow."""

    max_steps: int = 50
    max_depth: int = 20
    max_prompt_chars: int = 20_000
    max_bytes: int = 262_144
    max_attempts: int = 10
    max_seconds: int = 30 * 86400


class StepDescription(BaseModel):
    """One step. It has exactly one of use, prompt and wait."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    slug: Slug = Field(description="the step's name, unique in the flow; other steps refer to it")
    use: str | None = Field(None, description="the action to do")
    prompt: str | None = Field(
        None,
        min_length=1,
        description="what to ask a language model; {slug} stands for that step's output, {slug.field} for a "
        "field of it, {element} for the element when the step has over, {input} for the run's input",
    )
    wait: float | None = Field(
        None,
        gt=0,
        description="wait for a signal from outside, at most so many seconds; its payload is the output",
    )
    over: Slug | None = Field(
        None, description="do it once for each element of the list that this step gave; the output is a list"
    )
    depends_on: list[Slug] = Field(
        default_factory=list, description="steps to wait for, beside those that placeholders name"
    )
    with_: dict[str, Any] = Field(
        default_factory=dict,
        alias="with",
        description="parameters of the action: constants, or texts with placeholders as in prompt; a text that "
        "is one placeholder passes the value itself",
    )
    returns: Literal["text", "json"] | dict[str, Any] = Field(
        "text", description="of a prompt: text, json, or a JSON schema of the answer"
    )
    system: str | None = Field(None, min_length=1, description="of a prompt: the system message")
    complexity: Complexity | None = Field(None, description="of a prompt: how hard it is")
    task_type: str | None = Field(None, min_length=1, max_length=200, description="of a prompt: its kind")
    max_tokens: int | None = Field(None, ge=1, description="of a prompt: longest answer")
    temperature: float | None = Field(None, ge=0, le=2, description="of a prompt")
    max_attempts: int | None = Field(None, ge=1)
    base_delay: int | None = Field(None, ge=0, description="seconds; the waits between attempts double")
    timeout: int | None = Field(None, ge=1, description="seconds for one attempt, or for a prompt's answer")
    start_delay: int | None = Field(None, ge=0, description="seconds to wait before it starts")
    only_if: dict[str, Any] | None = Field(
        None, description="run only if {step: output} of its dependencies, or the run's input, contains this"
    )
    unless: dict[str, Any] | None = Field(None, description="do not run if it contains this")
    when_unmet: When | None = None
    when_exhausted: When | None = None

    @property
    def kind(self) -> str:
        """Which of use, prompt and wait it has."""
        return next(kind for kind in ("use", "prompt", "wait") if getattr(self, kind) is not None)


_OF_PROMPTS = ("returns", "system", "complexity", "task_type", "max_tokens", "temperature")


@dataclass
class Description:
    """What is left of a JSON text after reading: the steps of the right form, by index, and the faults."""

    name: str
    raw: dict[str, Any]
    steps: dict[int, StepDescription] = field(default_factory=dict)
    slugs: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def fault(self, path: str, text: str) -> None:
        said = f"{path}: {text}"
        self.faults.append(said if len(said) <= 500 else f"{said[:500]}…")

    def raise_faults(self) -> None:
        """One `InvalidFlow` with all faults, a line each, that whoever wrote the description can repair it by."""
        if self.faults:
            count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
            lines = "\n".join(f"- {text}" for text in self.faults[:50])
            raise InvalidFlow(f"the flow's description has {count}:\n{lines}")


def read(given: dict[str, Any] | str | bytes, limits: Limits | None) -> Description:
    """Check the form of a description, step by step; ``limits`` None: of one that was let in before."""
    raw = _parse(given)
    if limits is not None and len(to_json(raw)) > limits.max_bytes:
        raise InvalidFlow(f"the flow's description is longer than {limits.max_bytes:,} bytes")
    found = Description("", raw)
    for key in raw.keys() - {"name", "steps"}:
        found.fault(key[:100], "there is no such field; a flow has name and steps")
    try:
        found.name = check_slug("flow", raw.get("name"))
    except InvalidFlow as error:
        found.fault("name", str(error))
    steps = raw.get("steps")
    if not isinstance(steps, list) or not steps:
        found.fault("steps", "must be a list with one step at least")
    elif limits is not None and len(steps) > limits.max_steps:
        found.fault("steps", f"{len(steps)} steps; {limits.max_steps} are allowed at most")
    else:
        found.slugs = [
            one["slug"] for one in steps if isinstance(one, dict) and isinstance(one.get("slug"), str)
        ]
        for index, step in enumerate(steps):
            _read_step(found, index, step, limits)
    return found


def _parse(given: dict[str, Any] | str | bytes) -> dict[str, Any]:
    try:
        raw = from_json(given) if isinstance(given, (str, bytes)) else given
        check(raw, "description")
    except InvalidRequest as error:
        raise InvalidFlow(str(error)) from None
    except ValueError as error:
        raise InvalidFlow(f"the flow's description is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidFlow("the flow's description must be an object with name and steps")
    return raw


def _read_step(found: Description, index: int, raw: Any, limits: Limits | None) -> None:
    path = f"steps[{index}]"
    before = len(found.faults)
    try:
        step = StepDescription.model_validate_json(to_json(raw))
    except ValidationError as error:
        for one in error.errors(include_url=False):
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"])
            found.fault(f"{path}{where}", _advice(one["type"], one["msg"]))
        return
    kinds = [kind for kind in ("use", "prompt", "wait") if getattr(step, kind) is not None]
    if len(kinds) != 1:
        found.fault(path, f"give exactly one of use, prompt and wait, not {' and '.join(kinds) or 'none'}")
    else:
        _check_fields(found, path, step)
    if step.slug == "run":
        found.fault(f"{path}.slug", "a step cannot be called 'run'; rename it")
    elif step.slug in ("input", "element"):
        found.fault(f"{path}.slug", f"{{{step.slug}}} means something else in placeholders; rename the step")
    if any(step.slug == other.slug for other in found.steps.values()):
        found.fault(f"{path}.slug", f"{step.slug!r} is there more than once; rename one of them")
    if limits is not None:
        _check_limits(found, path, step, limits)
    if len(found.faults) == before:
        found.steps[index] = step


def _advice(kind: str, text: str) -> str:
    if kind == "extra_forbidden":
        return f"there is no such field; a step has {', '.join(_FIELDS)}"
    if kind == "string_pattern_mismatch":
        return "a name has letters (a-z), digits and underscores only, and no digit in front"
    return text[:1].lower() + text[1:]


def _check_fields(found: Description, path: str, step: StepDescription) -> None:
    given = step.model_fields_set
    if step.prompt is None:
        for name in _OF_PROMPTS:
            if name in given:
                found.fault(f"{path}.{name}", "only a step with a prompt has this; remove it")
    if step.use is None and step.with_:
        found.fault(f"{path}.with", "only a step with use has this; remove it")
    if step.wait is not None:
        if step.over is not None:
            found.fault(f"{path}.over", "a wait goes over nothing; use depends_on")
        if step.timeout is not None:
            found.fault(f"{path}.timeout", "the time to wait is in wait; remove it")
    if step.over is not None and any(slug != step.over for slug in step.depends_on):
        found.fault(
            f"{path}.depends_on", f"a step with over depends on {step.over!r} alone; remove the others"
        )


def _check_limits(found: Description, path: str, step: StepDescription, limits: Limits) -> None:
    if len(step.prompt or "") + len(step.system or "") > limits.max_prompt_chars:
        found.fault(f"{path}.prompt", f"longer than {limits.max_prompt_chars:,} characters, with system")
    if (step.max_attempts or 0) > limits.max_attempts:
        found.fault(f"{path}.max_attempts", f"{limits.max_attempts} are allowed at most")
    for name in ("base_delay", "timeout", "start_delay", "wait"):
        if (getattr(step, name) or 0) > limits.max_seconds:
            found.fault(f"{path}.{name}", f"{limits.max_seconds:,} s are allowed at most")


_FIELDS = [one.alias or name for name, one in StepDescription.model_fields.items()]
