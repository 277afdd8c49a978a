"""Where users begin: a flow is a handful of functions with decorators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from pgnexus.errors import InvalidFlow, StepFailed
from pgnexus.flow.define.blueprint import Blueprint
from pgnexus.flow.define.invoke import is_async
from pgnexus.flow.define.llm import LLMSettings, LLMStep
from pgnexus.flow.define.options import (
    CommonSettings,
    FlowOptions,
    Seconds,
    StepOptions,
    StepSettings,
    check_slug,
)
from pgnexus.flow.define.signature import Reader, Signature
from pgnexus.flow.define.step import HandlerStep, Step, WaitStep

P = ParamSpec("P")
R = TypeVar("R")

Dependency = Step | str
Dependencies = Dependency | Sequence[Dependency]


class CodeSettings(StepSettings, total=False):
    """A handler's own: its ``slug`` when that is not its name.

    ``pure``: it does nothing but compute, quickly, and may be done again in its neighbour's transaction.
    ``transactional``: ``ctx.connection`` is the one in which its completion will be committed.
    """

    slug: str
    pure: bool
    transactional: bool


class Flow(Blueprint):
    """A workflow: steps that are functions, joined by the names of their parameters.

    ``max_attempts``, ``base_delay`` and ``timeout`` (seconds) hold for steps that say nothing else.

    >>> flow = Flow("greet")
    >>> @flow.step
    ... def name(input: dict[str, str]) -> str:
    ...     return input["name"]
    >>> @flow.step
    ... async def greeting(name: str) -> str:
    ...     return f"Hello {name}"
    >>> flow.steps["greeting"].depends_on
    ('name',)
    """

    def __init__(
        self, name: str, *, max_attempts: int = 3, base_delay: Seconds = 5, timeout: Seconds = 60
    ) -> None:
        check_slug("flow", name)
        super().__init__(name, FlowOptions.make(f"flow {name}", max_attempts, base_delay, timeout))

    @overload
    def step(self, handler: Callable[P, R], /) -> HandlerStep[P, R]: ...
    @overload
    def step(
        self, handler: None = None, /, *, depends_on: Dependencies = (), **settings: Unpack[CodeSettings]
    ) -> Callable[[Callable[P, R]], HandlerStep[P, R]]: ...
    def step(self, handler: Any = None, /, *, depends_on: Dependencies = (), **settings: Any) -> Any:
        """Add a step. Its parameters say what it depends on, and ``depends_on`` what else it waits for.

        A parameter named like an earlier step gets that step's output, one annotated with `Context` the
        context; the first other parameter of a step without dependencies gets the run's input.
        """

        def add(handler: Callable[P, R]) -> HandlerStep[P, R]:
            slug = self._slug(handler, settings.get("slug"))
            given = self._slugs(slug, depends_on)
            signature = self._reader(slug).single(handler, given)
            return self._added(slug, handler, signature, is_map=False, settings=settings)

        return add if handler is None else add(handler)

    @overload
    def map(self, handler: Callable[P, R], /) -> HandlerStep[P, R]: ...
    @overload
    def map(
        self, handler: None = None, /, *, over: Dependency | None = None, **settings: Unpack[CodeSettings]
    ) -> Callable[[Callable[P, R]], HandlerStep[P, R]]: ...
    def map(self, handler: Any = None, /, *, over: Dependency | None = None, **settings: Any) -> Any:
        """Add a step with one task for each element of what the step ``over`` gave, or of the run's input.

        The first parameter gets the element; the output is the list of what the tasks returned, in order.
        """

        def add(handler: Callable[P, R]) -> HandlerStep[P, R]:
            slug = self._slug(handler, settings.get("slug"))
            signature = self._reader(slug).map(handler, self._over(slug, over))
            return self._added(slug, handler, signature, is_map=True, settings=settings)

        return add if handler is None else add(handler)

    @overload
    def llm(self, handler: Callable[P, R], /) -> LLMStep[P, R]: ...
    @overload
    def llm(
        self,
        handler: None = None,
        /,
        *,
        depends_on: Dependencies = (),
        over: Dependency | None = None,
        returns: Any = str,
        **settings: Unpack[LLMSettings],
    ) -> Callable[[Callable[P, R]], LLMStep[P, R]]: ...
    def llm(
        self,
        handler: Any = None,
        /,
        *,
        depends_on: Dependencies = (),
        over: Dependency | None = None,
        returns: Any = str,
        **settings: Any,
    ) -> Any:
        """Add a step whose handler makes a `Prompt` (or a text), and whose output is the model's answer.

        ``returns`` is str for the answer's text, `LLMResult` for all there is to know of it, or any other
        type: then the model is asked for JSON of that type's schema. Waiting holds no worker.
        With ``over`` it makes one prompt for each element.
        """

        def add(handler: Callable[P, R]) -> LLMStep[P, R]:
            slug = self._slug(handler, settings.get("slug"))
            reader = self._reader(slug)
            if over is not None:
                if depends_on:
                    raise InvalidFlow(f"{self._where(slug)}: give over or depends_on, not both")
                signature = reader.map(handler, self._over(slug, over))
            else:
                signature = reader.single(handler, self._slugs(slug, depends_on))
            step = LLMStep(
                slug,
                handler,
                signature,
                where=self._where(slug),
                settings=settings,
                output=reader.codec(returns, "returns"),
                is_map=over is not None,
            )
            self.add(step)
            return step

        return add if handler is None else add(handler)

    def wait(
        self,
        slug: str,
        *,
        timeout: timedelta | float,
        depends_on: Dependencies = (),
        returns: Any = Any,
        **settings: Unpack[CommonSettings],
    ) -> WaitStep:
        """Add a step that waits for a signal, at most ``timeout`` (seconds); the payload is its output."""
        where = self._where(check_slug(f"flow {self.name}: step", slug))
        options = StepOptions.make(where, settings)
        codec = self._reader(slug).codec(returns, "returns")
        depends = self._slugs(slug, depends_on)
        try:
            step = WaitStep(slug, timeout=timeout, depends_on=depends, options=options, output=codec)
        except StepFailed as error:
            raise InvalidFlow(f"{where}: {error}") from None
        self.add(step)
        return step

    def _added(
        self,
        slug: str,
        handler: Callable[P, R],
        signature: Signature,
        *,
        is_map: bool,
        settings: Mapping[str, Any],
    ) -> HandlerStep[P, R]:
        where = self._where(slug)
        if "depends_on" in settings:
            raise InvalidFlow(f"{where}: a map depends on one step, the one it maps over; write over=…")
        own = {
            name: value for name, value in settings.items() if name not in ("slug", "pure", "transactional")
        }
        pure, transactional = settings.get("pure", False), settings.get("transactional", False)
        if pure and transactional:
            raise InvalidFlow(f"{where}: a step that writes to the database is not pure; leave pure out")
        if transactional and not is_async(handler):
            raise InvalidFlow(f"{where}: ctx.connection is asynchronous; make the handler `async def`")
        step = HandlerStep(
            slug,
            handler,
            signature,
            is_map=is_map,
            options=StepOptions.make(where, own),
            output=self._reader(slug).codec(signature.returns, "what it returns"),
            pure=pure,
            transactional=transactional,
        )
        self.add(step)
        return step

    def _slug(self, handler: object, given: str | None) -> str:
        if not callable(handler):
            raise InvalidFlow(
                f"flow {self.name}: {handler!r} is no function; write @flow.step above a function, "
                "and give options by name"
            )
        if isinstance(handler, Step):
            raise InvalidFlow(
                f"flow {self.name}: {handler.slug} is a step already; give the function itself, "
                f"{handler.slug}.handler"
            )
        slug = given or getattr(handler, "__name__", None)
        if slug is None or slug == "<lambda>":
            raise InvalidFlow(f"flow {self.name}: the handler has no name of its own; give slug='…'")
        return check_slug(f"flow {self.name}: step", slug)

    def _reader(self, slug: str) -> Reader:
        return Reader(self._where(slug), self._steps.keys())

    def _slugs(self, slug: str, depends_on: Dependencies) -> tuple[str, ...]:
        given = [depends_on] if isinstance(depends_on, (Step, str)) else depends_on
        return tuple(dict.fromkeys(self._dependency(slug, one) for one in given))

    def _over(self, slug: str, over: Dependency | None) -> str | None:
        if isinstance(over, (list, tuple)):
            raise InvalidFlow(f"{self._where(slug)}: a map goes over one step, not {len(over)}")
        return None if over is None else self._dependency(slug, over)

    def _dependency(self, slug: str, given: Dependency) -> str:
        if isinstance(given, Step):
            if self._steps.get(given.slug) is not given:
                raise InvalidFlow(
                    f"{self._where(slug)}: {given.slug} is a step of another flow; "
                    "depend on steps of this one only"
                )
            return given.slug
        if isinstance(given, str):
            return given
        raise InvalidFlow(
            f"{self._where(slug)}: {given!r} is no step; depend on what @flow.step returned, or on a slug"
        )
