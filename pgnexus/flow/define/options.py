"""Before a flow is compiled: slugs, and the options of flows and steps, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypedDict, get_args

from pgnexus.errors import InvalidFlow, InvalidRequest
from pgnexus.storable import check

When = Literal["fail", "skip", "skip-cascade"]
Seconds = int | timedelta
Pattern = Mapping[str, Any]

MAX_SLUG: Final = 128
LONGEST: Final = 10 * 365 * 86400  # seconds
_SLUG = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class CommonSettings(TypedDict, total=False):
    """What a step of any kind may say of itself; what it leaves out, the flow says.

    ``base_delay`` is the unit of the waits between attempts, which double; ``start_delay`` how long the step
    waits once it is ready: whole seconds, or timedeltas. The step
    runs only if its input contains ``only_if`` and does not contain ``unless`` (as PostgreSQL's ``@>``): the
    run's input for a root step, ``{step: output}`` of its dependencies for others. ``when_unmet`` says what
    becomes of it otherwise, ``when_exhausted`` what becomes of it after the last failed attempt: fail (and
    with it the run), skip, or skip-cascade (and with it all that depend on it).
    """

    max_attempts: int
    base_delay: Seconds
    start_delay: Seconds
    only_if: Pattern
    unless: Pattern
    when_unmet: When
    when_exhausted: When


class StepSettings(CommonSettings, total=False):
    """What a step with a handler may say of itself; ``timeout`` is how long one attempt may take."""

    timeout: Seconds


_KNOWN = StepSettings.__annotations__


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """What holds for every step that says nothing else: attempts, and seconds."""

    max_attempts: int
    base_delay: int
    timeout: int

    @classmethod
    def make(cls, where: str, max_attempts: int, base_delay: Seconds, timeout: Seconds) -> FlowOptions:
        return cls(
            _whole(where, "max_attempts", max_attempts, 1),
            _seconds(where, "base_delay", base_delay, 0),
            _seconds(where, "timeout", timeout, 1),
        )


@dataclass(frozen=True, slots=True)
class StepOptions:
    """The options of one step; None: as the flow has it."""

    max_attempts: int | None = None
    base_delay: int | None = None
    timeout: int | None = None
    start_delay: int | None = None
    only_if: dict[str, Any] | None = None
    unless: dict[str, Any] | None = None
    when_unmet: When = "skip"
    when_exhausted: When = "fail"

    @classmethod
    def make(cls, where: str, given: Mapping[str, Any]) -> StepOptions:
        """Check what a step says of itself; raises `InvalidFlow` that begins with ``where``."""
        unknown = given.keys() - _KNOWN.keys()
        if unknown:
            known = ", ".join(_KNOWN)
            raise InvalidFlow(f"{where}: there is no option {sorted(unknown)[0]!r}; known are {known}")
        checked: dict[str, Any] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name == "max_attempts":
                checked[name] = _whole(where, name, value, 1)
            elif name in ("base_delay", "timeout", "start_delay"):
                checked[name] = _seconds(where, name, value, 1 if name == "timeout" else 0)
            elif name in ("only_if", "unless"):
                checked[name] = _pattern(where, name, value)
            elif value not in get_args(When):
                raise InvalidFlow(f"{where}: {name} is {value!r}; use one of {', '.join(get_args(When))}")
            else:
                checked[name] = value
        return cls(**checked)

    @property
    def may_leave_a_gap(self) -> bool:
        """Whether the step may be skipped while those that depend on it run."""
        conditional = self.only_if is not None or self.unless is not None
        return self.when_exhausted == "skip" or (conditional and self.when_unmet == "skip")


def check_slug(what: str, slug: object) -> str:
    """``slug`` when it may name a flow or a step; else `InvalidFlow` with advice.

    >>> check_slug("flow", "review")
    'review'
    """
    if not isinstance(slug, str):
        raise InvalidFlow(f"the name of a {what} must be a text, not {slug!r}")
    short = slug if len(slug) <= 60 else f"{slug[:60]}…"
    if slug == "run":
        raise InvalidFlow(f"a {what} cannot be called 'run': that word stands for the run itself; rename it")
    if len(slug) > MAX_SLUG:
        raise InvalidFlow(f"{what} {short!r}: {len(slug)} characters; a name has {MAX_SLUG} at most")
    if not _SLUG.fullmatch(slug):
        better = re.sub(r"\W+", "_", slug, flags=re.ASCII).strip("_")[:40]
        better = f"_{better}" if better[:1].isdigit() else better
        hint = f", such as {better!r}" if _SLUG.fullmatch(better) and better != "run" else ""
        raise InvalidFlow(
            f"{what} {short!r}: a name has letters (a-z), digits and underscores only, "
            f"and no digit in front{hint}"
        )
    return slug


def _whole(where: str, name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidFlow(f"{where}: {name} is {value!r}; use a whole number")
    if not least <= value <= LONGEST:
        raise InvalidFlow(f"{where}: {name} is {value}; use {least} to {LONGEST}")
    return value


def _seconds(where: str, name: str, value: object, least: int) -> int:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidFlow(f"{where}: {name} is {value!r}; use whole seconds, or a timedelta of them")
    if not least <= value <= LONGEST:
        raise InvalidFlow(f"{where}: {name} is {value} s; use {least} s to ten years")
    return value


def _pattern(where: str, name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidFlow(f"{where}: {name} is {value!r}; use an object, such as {{'kind': 'invoice'}}")
    pattern = dict(value)
    try:
        check(pattern, name)
    except InvalidRequest as error:
        raise InvalidFlow(f"{where}: {error}") from None
    return pattern
