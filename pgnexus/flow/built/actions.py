"""What flows built at run time may do: plain functions that the application allows, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

from pgnexus.errors import InvalidFlow
from pgnexus.flow.define.invoke import is_async
from pgnexus.flow.define.options import check_slug
from pgnexus.flow.define.signature import Parameter, Reader, is_context
from pgnexus.flow.define.values import Codec

F = TypeVar("F", bound=Callable[..., Any])

PROMPT: Final = "prompt"
WAIT: Final = "wait"


@dataclass(frozen=True, slots=True)
class Action:
    """A function that descriptions may use. Its parameters have the role dependency, context or unused."""

    name: str
    handler: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    output: Codec
    pure: bool
    transactional: bool

    @property
    def doc(self) -> str:
        """Its docstring, for the model that is to use it."""
        return inspect.getdoc(self.handler) or ""

    @property
    def fillable(self) -> list[Parameter]:
        """The parameters that a description can fill."""
        return [one for one in self.parameters if one.role == "dependency"]


class Actions:
    """The actions that an application allows.

    >>> actions = Actions()
    >>> @actions.add
    ... def fetch(url: str) -> str:
    ...     return f"what is at {url}"
    >>> actions.handlers
    ['fetch', 'prompt', 'wait']
    """

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}

    @overload
    def add(self, handler: F, /) -> F: ...
    @overload
    def add(
        self,
        handler: None = None,
        /,
        *,
        name: str | None = None,
        pure: bool = False,
        transactional: bool = False,
    ) -> Callable[[F], F]: ...
    def add(
        self,
        handler: Any = None,
        /,
        *,
        name: str | None = None,
        pure: bool = False,
        transactional: bool = False,
    ) -> Any:
        """Allow a function, by its own name or another one; it stays what it is."""

        def add(handler: F) -> F:
            self._add(handler, name or str(getattr(handler, "__name__", "")), pure, transactional)
            return handler

        return add if handler is None else add(handler)

    @property
    def handlers(self) -> list[str]:
        """What a worker with these actions may claim tasks for."""
        return sorted([*self._actions, PROMPT, WAIT])

    def get(self, name: str) -> Action | None:
        return self._actions.get(name)

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def _add(self, handler: Callable[..., Any], name: str, pure: bool, transactional: bool) -> None:
        check_slug("action", name)
        where = f"action {name}"
        if name in (PROMPT, WAIT):
            raise InvalidFlow(f"{where}: that word stands for a kind of step; give name='…'")
        if name in self._actions:
            raise InvalidFlow(f"{where}: there is such an action already; give name='…'")
        if pure and transactional:
            raise InvalidFlow(f"{where}: an action that writes to the database is not pure; leave pure out")
        if transactional and not is_async(handler):
            raise InvalidFlow(f"{where}: ctx.connection is asynchronous; make the action `async def`")
        reader = Reader(where, ())
        given, returns = reader.read(handler)
        parameters = tuple(
            reader.parameter(one, annotation, "context" if is_context(annotation) else "dependency")
            for one, annotation in given.values()
        )
        output = reader.codec(returns, "what it returns")
        self._actions[name] = Action(name, handler, parameters, output, pure, transactional)
