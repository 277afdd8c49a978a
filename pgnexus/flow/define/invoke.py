"""The call of a handler: a coroutine in the event loop, a plain function in a thread that may block.

The threads are daemons of our own. asyncio's would be few and shared with its look-ups of names, and a
handler that hangs would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Final
from weakref import WeakKeyDictionary

MAX_THREADS: Final = 64  # at once, for one event loop; more would keep it from its turn


async def invoke(
    handler: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any], slug: str
) -> Any:
    """What the handler returns; what would end the process, or a wait for ever, becomes a RuntimeError."""
    try:
        if is_async(handler):
            return await handler(*args, **named)
        answer = await _in_thread(partial(handler, *args, **named), slug)
        return await answer if inspect.isawaitable(answer) else answer
    except SystemExit as error:
        raise RuntimeError(f"step {slug}: the handler raised SystemExit({error.code!r})") from error


class _Threads:
    """The threads of one event loop; all but what a thread itself does happens in that loop."""

    def __init__(self) -> None:
        self.slots = asyncio.Semaphore(MAX_THREADS)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = 0
        self._idle = 0

    async def run(self, call: Callable[[], Any], slug: str) -> Any:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> None:
            answer, error = _outcome(partial(context.run, call), slug)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._settle, done, answer, error)

        self._work.put(work)
        if self._idle:
            self._idle -= 1
        else:
            self._count += 1
            name = f"pgnexus handlers {self._count}"
            threading.Thread(target=_serve, args=(self._work,), name=name, daemon=True).start()
        return await done

    def _settle(self, done: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
        self._idle += 1
        if done.done():  # cancelled meanwhile: the thread could not be
            return
        if error is None:
            done.set_result(answer)
        else:
            done.set_exception(error)

    def __del__(self) -> None:
        for _ in range(self._count):
            self._work.put(None)


_threads: WeakKeyDictionary[asyncio.AbstractEventLoop, _Threads] = WeakKeyDictionary()


async def _in_thread(call: Callable[[], Any], slug: str) -> Any:
    loop = asyncio.get_running_loop()
    threads = _threads.get(loop)
    if threads is None:
        for ended in [one for one in _threads if one.is_closed()]:  # its semaphore may hold it in memory
            del _threads[ended]
        threads = _threads[loop] = _Threads()
    async with threads.slots:
        return await threads.run(call, slug)


def _serve(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # or what it holds would live until the next one comes


def _outcome(call: Callable[[], Any], slug: str) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except (StopIteration, GeneratorExit, KeyboardInterrupt) as error:
        # no future takes the first, whoever waits would wait for ever; the others would end those that wait
        fault = RuntimeError(f"step {slug}: the handler raised {type(error).__name__}")
        fault.__cause__ = error
        return None, fault
    except BaseException as error:
        return None, error


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, and so does not block the event loop."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - not whether it can be called, but how
    )
