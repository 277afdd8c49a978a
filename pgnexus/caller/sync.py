"""The caller's door for code that is not asynchronous: one shim over `LLMService`, not a twin."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from uuid import UUID

from pgnexus.caller.chunk import Chunk
from pgnexus.caller.handle import RequestHandle
from pgnexus.caller.service import LLMService
from pgnexus.caller.stream import ResultStream
from pgnexus.errors import ServiceMisused
from pgnexus.messages import LLMResult

T = TypeVar("T")


class SyncLLMService:
    """Every method of `LLMService`, blocking: it runs in an event loop of its own, in a thread of its own.

    ``opener`` gives the asynchronous service, for instance `pgnexus.open`; the handles that `enqueue`
    returns block, too, and a stream is an iterator. Use it as a context manager, from any number of threads::

        with SyncLLMService(pgnexus.open) as llm:
            print(llm.call("simple", "Say hello").text)
    """

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[LLMService]]) -> None:
        self._opener = opener
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pgnexus", daemon=True)
        self._context: AbstractAsyncContextManager[LLMService] | None = None
        self._service: LLMService | None = None

    def __enter__(self) -> SyncLLMService:
        if self._thread.ident is not None:
            raise ServiceMisused("this SyncLLMService was opened before: make another for another `with`")
        self._thread.start()
        try:
            self._context = self._opener()
            self._service = self._run(self._context.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._thread.is_alive():
            return  # a child after a fork: connections and event loop are its parent's, who still uses them
        try:
            if self._context is not None:
                self._run(self._context.__aexit__(None, None, None))
        finally:
            self._service = None
            self._end()

    def __getattr__(self, name: str) -> Any:
        if self._service is None:
            raise ServiceMisused("this SyncLLMService is not open: use it in a `with` block")
        return self._blocking(getattr(self._service, name))

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(LLMService) if name[0] != "_")})

    def _blocking(self, value: Any) -> Any:
        """``value`` as the caller sees it: what is asynchronous blocks, all else is as it is."""
        if isinstance(value, RequestHandle):
            return SyncRequestHandle(value, self._blocking)
        if isinstance(value, ResultStream):
            return SyncResultStream(value, self._run)
        if isinstance(value, list):
            return [self._blocking(item) for item in value]
        if not callable(value):
            return value

        @functools.wraps(value)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:  # also what is not a coroutine belongs into the service's event loop
                outcome = value(*args, **kwargs)
                return await outcome if inspect.isawaitable(outcome) else outcome

            return self._blocking(self._run(run()))

        return blocking

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():  # nobody would ever run it
            coroutine.close()
            raise ServiceMisused(
                "this SyncLLMService is closed, or was opened before a fork; open one in each process"
            )
        if self._thread is threading.current_thread():
            coroutine.close()
            raise ServiceMisused(
                "a SyncLLMService cannot be used in its own thread, which would wait for itself"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncRequestHandle:
    """A `RequestHandle` whose methods block."""

    def __init__(self, handle: RequestHandle, blocking: Callable[[Any], Any]) -> None:
        self._handle = handle
        self._blocking = blocking

    def __repr__(self) -> str:
        return f"Sync{self._handle!r}"

    def __getattr__(self, name: str) -> Any:
        return self._blocking(getattr(self._handle, name))


class SyncResultStream:
    """A `ResultStream` as a plain iterator, for one thread at a time; use it in a `with` block, or read to its end."""

    def __init__(self, stream: ResultStream, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._run = run

    def __repr__(self) -> str:
        return f"Sync{self._stream!r}"

    @property
    def request_id(self) -> UUID:
        return self._stream.request_id

    def __iter__(self) -> SyncResultStream:
        return self

    def __next__(self) -> Chunk:
        chunk: Chunk | None = self._run(self._next())
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> Chunk | None:
        return await anext(self._stream, None)

    def result(self) -> LLMResult:
        """Wait for the stored result, whether chunks are read or not."""
        result: LLMResult = self._run(self._stream.result())
        return result

    def close(self) -> None:
        """Read no more; see `ResultStream.aclose`."""
        self._run(self._stream.aclose())

    def __enter__(self) -> SyncResultStream:
        self._run(self._stream.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
