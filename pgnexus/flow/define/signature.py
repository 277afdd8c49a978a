"""Before a flow is compiled: what a handler's parameters say of the graph, and with what each is filled."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_type_hints

from pgnexus.errors import InvalidFlow
from pgnexus.flow.define.context import Context
from pgnexus.flow.define.later import Later
from pgnexus.flow.define.values import Codec, Misfit, members

Role = Literal["input", "element", "dependency", "context", "unused"]

_ANY = Codec(Any)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its role, and how JSON becomes what it is annotated with."""

    name: str
    role: Role
    codec: Codec
    default: Any
    by_position: bool

    @property
    def has_default(self) -> bool:
        return self.default is not inspect.Parameter.empty

    @property
    def can_be_missing(self) -> bool:
        return self.has_default or self.codec.allows_none

    @property
    def substitute(self) -> Any:
        """What it gets when its step was skipped."""
        return self.default if self.has_default else None


@dataclass(frozen=True, slots=True)
class Signature:
    """A handler's parameters with their roles, the steps it depends on, and what it returns."""

    parameters: tuple[Parameter, ...]
    depends_on: tuple[str, ...]
    returns: Any


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads signatures of one step's handler; every fault is an `InvalidFlow` that begins with ``where``."""

    where: str
    earlier: Collection[str]

    def single(self, handler: Callable[..., Any], depends_on: tuple[str, ...]) -> Signature:
        """Parameters named like earlier steps, or in ``depends_on``, are dependencies; else the run's input."""
        given, returns = self.read(handler)
        dependencies = dict.fromkeys(depends_on)
        dependencies |= dict.fromkeys(
            name
            for name, (_, annotation) in given.items()
            if name in self.earlier and not is_context(annotation)
        )
        parameters: list[Parameter] = []
        for name, (parameter, annotation) in given.items():
            role: Role = "unused"
            if is_context(annotation):
                role = "context"
            elif name in dependencies:
                role = "dependency"
            elif not dependencies and not any(one.role == "input" for one in parameters):
                role = "input"
                self._refuse_typo(name)
            elif parameter.default is parameter.empty:
                raise InvalidFlow(f"{self.where}: {self._unreachable(name, dependencies)}")
            parameters.append(self.parameter(parameter, annotation, role))
        return Signature(tuple(parameters), tuple(dependencies), returns)

    def _refuse_typo(self, name: str) -> None:
        """A misspelt dependency would make its step a root, without a word."""
        if close := difflib.get_close_matches(name, self.earlier, n=1, cutoff=0.8):
            raise InvalidFlow(
                f"{self.where}: the parameter {name!r} would be the run's input; did you mean the step "
                f"{close[0]!r}? If not, name it less like it"
            )

    def map(self, handler: Callable[..., Any], over: str | None) -> Signature:
        """The first parameter that is no context is the element."""
        given, returns = self.read(handler)
        parameters: list[Parameter] = []
        for name, (parameter, annotation) in given.items():
            role: Role = "unused"
            if is_context(annotation):
                role = "context"
            elif not any(one.role == "element" for one in parameters):
                role = "element"
                if over is None and name in self.earlier:
                    raise InvalidFlow(
                        f"{self.where}: the parameter {name!r} is named like a step; write "
                        f"@flow.map(over={name}) to map over its output, or rename the parameter to map over "
                        "the run's input"
                    )
            elif name in self.earlier:
                raise InvalidFlow(
                    f"{self.where}: a map has one dependency at most, and the parameter {name!r} would be "
                    f"another; join what it needs into the elements in a step before it"
                )
            elif parameter.default is parameter.empty:
                raise InvalidFlow(
                    f"{self.where}: nothing fills the parameter {name!r}: a map's handler gets one element, "
                    "and a Context when a parameter is annotated so"
                )
            parameters.append(self.parameter(parameter, annotation, role))
        if not any(one.role == "element" for one in parameters):
            raise InvalidFlow(f"{self.where}: a map's handler needs a parameter for the element")
        return Signature(tuple(parameters), () if over is None else (over,), returns)

    def read(self, handler: Callable[..., Any]) -> tuple[dict[str, tuple[inspect.Parameter, Any]], Any]:
        """The parameters with their annotations, and what the handler returns."""
        target = inspect.unwrap(handler) if inspect.isroutine(handler) else handler
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise InvalidFlow(f"{self.where}: the handler is a generator; collect what it yields in a list")
        hints = self._hints(target)
        given: dict[str, tuple[inspect.Parameter, Any]] = {}
        for name, parameter in inspect.signature(handler).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise InvalidFlow(
                    f"{self.where}: the handler takes *{name}; name each parameter, since the names say "
                    "which steps it depends on"
                )
            annotation = hints.get(name, parameter.empty)
            if annotation is parameter.empty and name in ("ctx", "context") and name not in self.earlier:
                raise InvalidFlow(f"{self.where}: annotate the parameter {name!r}, as {name}: Context")
            given[name] = (parameter, annotation)
        return given, _returned(hints.get("return", Any))

    def _hints(self, handler: Callable[..., Any]) -> dict[str, Any]:
        target: Any = handler
        while hasattr(target, "func"):  # functools.partial
            target = target.func
        if not inspect.isroutine(target) and not isinstance(target, type):
            target = type(target).__call__
        try:
            return get_type_hints(target, localns=_names_around(), include_extras=True)
        except NameError as error:
            raise InvalidFlow(
                f"{self.where}: an annotation cannot be read: {error}; import that name where the handler is "
                "defined, and not below `if TYPE_CHECKING`"
            ) from None
        except TypeError as error:
            raise InvalidFlow(f"{self.where}: an annotation cannot be read: {error}") from None

    def parameter(self, parameter: inspect.Parameter, annotation: Any, role: Role) -> Parameter:
        """A parameter in its role, with the way into its annotation."""
        codec = _ANY
        if role in ("input", "element", "dependency"):
            codec = self.codec(annotation, f"the parameter {parameter.name!r}")
        by_position = parameter.kind is parameter.POSITIONAL_ONLY
        return Parameter(parameter.name, role, codec, parameter.default, by_position)

    def codec(self, annotation: Any, what: str) -> Codec:
        """The way into an annotation, which ``what`` names."""
        try:
            return Codec(annotation)
        except Misfit as error:
            raise InvalidFlow(
                f"{self.where}: {what}: {error}; use a pydantic model, a dataclass, or types that JSON has"
            ) from None

    def _unreachable(self, name: str, dependencies: Iterable[str]) -> str:
        close = difflib.get_close_matches(name, self.earlier, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if list(dependencies):
            hint += "; a step that depends on others gets the run's input by `await ctx.flow_input()`"
        known = ", ".join(self.earlier) or "none"
        return f"nothing fills the parameter {name!r}: it is named like no earlier step ({known}){hint}"


def is_context(annotation: Any) -> bool:
    """Whether a parameter of this annotation gets the context."""
    return any(
        isinstance(member, type) and issubclass(member, Context)
        for member in members(annotation)
        if member is not inspect.Parameter.empty
    )


def _returned(annotation: Any) -> Any:
    """What is left of a return annotation without `Later`, which is no output."""
    every = members(annotation)
    left = tuple(member for member in every if member is not Later)
    if len(left) == len(every):
        return annotation
    if not left:
        return Any
    return Union[left] if len(left) > 1 else left[0]  # noqa: UP007


def _names_around() -> dict[str, Any]:
    """The local names where the handler is being decorated: its annotations may be of a function's own types."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("pgnexus.flow."):
        frame = frame.f_back
    return {} if frame.f_locals is frame.f_globals else dict(frame.f_locals)
