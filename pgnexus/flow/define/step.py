"""One step of a flow: what it needs, what it may answer, and how its handler is called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from pgnexus.errors import InvalidOutput, InvalidRequest, StepFailed
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.invoke import invoke
from pgnexus.flow.define.later import Later, seconds_of
from pgnexus.flow.define.options import StepOptions
from pgnexus.flow.define.prompt import Prompt
from pgnexus.flow.define.signature import Parameter, Signature
from pgnexus.flow.define.values import Codec, Misfit, dump

P = ParamSpec("P")
R = TypeVar("R")

Kind = Literal["single", "map", "llm", "wait"]


class Step:
    """What every kind of step has. ``output`` reads one task's output, ``is_map`` says that it has many.

    ``handler_name`` is what the database hands tasks out by in flows built at run time; None in flows that
    are code.
    """

    kind: Kind = "single"

    def __init__(
        self,
        slug: str,
        *,
        depends_on: tuple[str, ...] = (),
        options: StepOptions | None = None,
        is_map: bool = False,
        output: Codec | None = None,
        pure: bool = False,
        transactional: bool = False,
        handler_name: str | None = None,
        doc: str | None = None,
    ) -> None:
        self.slug = slug
        self.depends_on = depends_on
        self.options = options or StepOptions()
        self.is_map = is_map
        self.output = output or Codec(Any)
        self.pure = pure
        self.transactional = transactional
        self.handler_name = handler_name
        self.doc = doc

    async def call(self, input: Any, flow_input: Any, context: Context) -> Any:
        """The answer to one task: a value for `encode`, or a `Later`.

        ``input`` is decoded JSON: the element for a map, ``{dependency: output}`` for others;
        ``flow_input`` is read by root steps that are no maps. `StepFailed` when they do not fit.
        """
        raise NotImplementedError

    def encode(self, value: Any, max_bytes: int | None = None) -> str:
        """The JSON text of an output; `InvalidOutput` when it has none, or more than ``max_bytes``."""
        if isinstance(value, Prompt):
            raise InvalidOutput(
                f"step {self.slug}: it returned a Prompt, but it is no LLM step; use @flow.llm"
            )
        return dump(value, f"step {self.slug}: output", max_bytes)

    def decode_output(self, value: Any) -> Any:
        """The step's whole output as annotated; a map's is a list. Raises `Misfit`."""
        where = f"output of {self.slug}"
        if self.is_map and isinstance(value, list):
            return [self.output.decode(one, f"{where}[{i}]") for i, one in enumerate(value)]
        return self.output.decode(value, where)

    def accept(self, payload: Any) -> str:
        """The JSON text of what a signal brings as this step's output; `InvalidRequest` when it does not fit."""
        try:
            text = dump(payload, f"step {self.slug}: payload")
            self.output.decode(payload, f"step {self.slug}: payload")
        except (InvalidOutput, Misfit) as error:
            raise InvalidRequest(str(error)) from None
        return text

    def check_flow_input(self, value: Any) -> None:
        """Raise `Misfit` when a run with this input, decoded JSON, could not pass this root step."""
        if self.is_map and not isinstance(value, list):
            raise Misfit(f"input: the step {self.slug} maps over it, so it must be a list")

    def needs(self, dependency: str) -> bool:
        """Whether it cannot run when ``dependency`` was skipped."""
        return False

    def __repr__(self) -> str:
        return f"<Step {self.slug} ({self.kind})>"


class HandlerStep(Step, Generic[P, R]):
    """A step that a function does; still that function when called."""

    def __init__(self, slug: str, handler: Callable[P, R], signature: Signature, **of_step: Any) -> None:
        super().__init__(slug, depends_on=signature.depends_on, doc=first_line(handler), **of_step)
        if self.is_map and self.kind == "single":
            self.kind = "map"
        self.handler = handler
        self.parameters = signature.parameters
        functools.update_wrapper(self, handler, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.handler(*args, **kwargs)

    async def call(self, input: Any, flow_input: Any, context: Context) -> Any:
        args: list[Any] = []
        named: dict[str, Any] = {}
        try:
            for one in self.parameters:
                if one.by_position:
                    args.append(self._fill(one, input, flow_input, context))
                elif one.role != "unused":
                    named[one.name] = self._fill(one, input, flow_input, context)
        except Misfit as error:
            raise StepFailed(f"step {self.slug}: {error}") from None
        return await invoke(self.handler, args, named, self.slug)

    def _fill(self, parameter: Parameter, input: Any, flow_input: Any, context: Context) -> Any:
        where = f"parameter {parameter.name}"
        match parameter.role:
            case "context":
                return context
            case "input":
                return parameter.codec.decode(flow_input, where)
            case "element":
                return parameter.codec.decode(input, where)
            case "dependency":
                if parameter.name in input:
                    return parameter.codec.decode(input[parameter.name], where)
                if not parameter.can_be_missing:
                    raise Misfit(f"{where}: that step was skipped; give the parameter a default")
                return parameter.substitute
            case _:
                return parameter.default

    def check_flow_input(self, value: Any) -> None:
        super().check_flow_input(value)
        for one in self.parameters:
            if one.role == "input":
                one.codec.decode(value, "input")
            elif one.role == "element":
                for i, element in enumerate(value):
                    one.codec.decode(element, f"input[{i}]")

    def needs(self, dependency: str) -> bool:
        return any(
            one.name == dependency and one.role == "dependency" and not one.can_be_missing
            for one in self.parameters
        )


class WaitStep(Step):
    """A step that waits for a signal, whose payload is its output."""

    kind = "wait"

    def __init__(self, slug: str, *, timeout: timedelta | float, **of_step: Any) -> None:
        super().__init__(slug, **of_step)
        self.timeout = seconds_of(timeout)

    async def call(self, input: Any, flow_input: Any, context: Context) -> Later:
        return Later(self.timeout, "signal")


def first_line(handler: object) -> str | None:
    """The first line of a handler's docstring."""
    text = inspect.getdoc(handler) if inspect.isroutine(handler) else None
    return text.strip().splitlines()[0] if text and text.strip() else None
