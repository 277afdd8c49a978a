"""The call of a handler: a coroutine in the event loop, a plain function in a thread that may block."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


async def invoke(
    handler: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any], slug: str
) -> Any:
    """What the handler returns; what would end the process, or a wait for ever, becomes a RuntimeError."""
    try:
        if is_async(handler):
            return await handler(*args, **named)
        answer = await asyncio.to_thread(_call, handler, args, named, slug)
        return await answer if inspect.isawaitable(answer) else answer
    except SystemExit as error:
        raise RuntimeError(f"step {slug}: the handler raised SystemExit({error.code!r})") from error


def _call(handler: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any], slug: str) -> Any:
    try:
        return handler(*args, **named)
    except StopIteration as error:  # no future takes it: whoever waits would wait for ever
        raise RuntimeError(f"step {slug}: the handler raised StopIteration") from error


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, and so does not block the event loop."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - not whether it can be called, but how
    )
