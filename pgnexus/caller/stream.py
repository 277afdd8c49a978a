"""Between T1 and T4, the caller's side: an answer read while it is given, by whichever worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from uuid import UUID

from pgnexus import telemetry
from pgnexus.caller.chunk import Assembly, Chunk
from pgnexus.caller.chunk_feeds import ChunkFeeds, Feed
from pgnexus.caller.leaver import Leaver
from pgnexus.caller.outcome import successful
from pgnexus.caller.request_worker import Accepted
from pgnexus.caller.waiters import Waiters
from pgnexus.db.database import Database
from pgnexus.db.listener import Listener
from pgnexus.errors import ResultPending, ServiceMisused
from pgnexus.messages import LLMResult

Start = Callable[[], Awaitable[Accepted]]


class ResultStream:
    """An answer as it comes, of `LLMService.stream` or `LLMService.resume`; iterate over its `Chunk`s once.

    The request is stored when the first chunk is asked for, or when a block is entered::

        async with llm.stream("simple", "Tell me a story.") as stream:
            async for chunk in stream:
                print("\\n---\\n" if chunk.discard else chunk.text, end="")
            result = await stream.result()

    The texts after the last chunk that says ``discard`` are the text of the stored result. Iterating raises what
    `LLMService.call` raises. Who leaves the block, or is cancelled, before the end cancels the request, unless
    ``cancel_on_exit`` says otherwise.
    """

    def __init__(
        self,
        feeds: ChunkFeeds,
        waiters: Waiters,
        leaver: Leaver,
        start: Start,
        request_id: UUID,
        *,
        after: int,
        patience: float | None,
        cancels: bool,
    ) -> None:
        self.request_id = request_id
        self._feeds = feeds
        self._waiters = waiters
        self._leaver = leaver
        self._start = start
        self._assembly = Assembly(after)
        self._patience = patience
        self._cancels = cancels
        self._loop = asyncio.get_running_loop()
        self._beginning = asyncio.Lock()
        self._held = ExitStack()
        self._watched: tuple[Feed, asyncio.Future[LLMResult]] | None = None
        self._give_up_at: float | None = None
        self._last: deque[Chunk] | None = None  # what is left to tell once all is read
        self._closed = False

    def __repr__(self) -> str:
        return f"ResultStream({self.request_id})"

    def __aiter__(self) -> ResultStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        try:
            chunk = await self._next(*await self._begin())
        except asyncio.CancelledError:
            await self.aclose()
            raise
        except BaseException:
            self._release()
            raise
        if chunk is None:
            self._release()
            raise StopAsyncIteration
        return chunk

    async def result(self) -> LLMResult:
        """Wait for the stored result, whether chunks are read or not; raises what `LLMService.call` raises."""
        if self._closed and not self._has_ended:
            raise ServiceMisused(
                f"request {self.request_id}: this stream was closed before its end; ask for the result by the id"
            )
        with telemetry.wait(self.request_id) as watched:
            return watched.arrived(await self._result())

    async def _result(self) -> LLMResult:
        try:
            _, future = await self._begin()
            left = None if self._give_up_at is None else max(0.0, self._give_up_at - self._loop.time())
            await asyncio.wait([future], timeout=left)
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if not future.done():
            raise self._pending()
        return successful(future.result())

    async def aclose(self) -> None:
        """Read no more; a request that has not ended is cancelled, unless ``cancel_on_exit`` says otherwise."""
        if self._is_leaving:
            self._release()
            await self._leaver.leave(self.request_id)
        self._release()

    async def __aenter__(self) -> ResultStream:
        try:
            await self._begin()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # `break` in a loop over a stream that nobody holds
        if self._closed or self._loop.is_closed():
            return
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._held.close)
            if self._is_leaving:
                self._loop.call_soon_threadsafe(self._leaver.begin, self.request_id)

    @property
    def _has_ended(self) -> bool:
        return self._watched is not None and self._watched[1].done()

    @property
    def _is_leaving(self) -> bool:
        """Whether nobody will come back for what is still being asked."""
        return self._cancels and not self._closed and self._watched is not None and not self._has_ended

    def _release(self) -> None:
        self._closed = True
        self._held.close()

    def _pending(self) -> ResultPending:
        return ResultPending(self.request_id, self._patience or 0)

    async def _begin(self) -> tuple[Feed, asyncio.Future[LLMResult]]:
        async with self._beginning:
            if self._watched is None:
                watched = self._watch()
                accepted = await self._start()
                if accepted.request_id != self.request_id:  # that of an idempotency key
                    self._held.close()
                    self.request_id = accepted.request_id
                    watched = self._watch()
                if self._patience is not None:
                    self._give_up_at = self._loop.time() + self._patience
                if not accepted.created:
                    self._waiters.look(self.request_id)
                    self._feeds.look(watched[0])
                return watched
            return self._watched

    def _watch(self) -> tuple[Feed, asyncio.Future[LLMResult]]:
        future = self._held.enter_context(self._waiters.subscribe(self.request_id))
        feed = self._held.enter_context(self._feeds.open(self.request_id))

        def ended(future: asyncio.Future[LLMResult]) -> None:
            if not future.cancelled():
                future.exception()  # is seen by whoever reads on, if anybody does
            feed.changed.set()

        future.add_done_callback(ended)
        self._watched = feed, future
        return self._watched

    async def _next(self, feed: Feed, future: asyncio.Future[LLMResult]) -> Chunk | None:
        """The next chunk; None at the end."""
        while True:
            while feed.rows:
                chunk = self._assembly.take(feed.rows.popleft())
                if feed.news and not feed.rows:
                    self._feeds.look(feed)  # there was no room for more
                if chunk is not None:
                    return chunk
            if future.done():
                result = successful(future.result())
                if feed.drained:
                    if self._last is None:
                        self._last = deque(self._assembly.finish(result))
                    return self._last.popleft() if self._last else None
                if not feed.draining:
                    self._feeds.drain(feed)
            feed.changed.clear()
            try:
                async with asyncio.timeout_at(self._give_up_at):
                    await feed.changed.wait()
            except TimeoutError:
                raise self._pending() from None


class Streams:
    """The streams that are read in this process."""

    def __init__(
        self, db: Database, listener: Listener, waiters: Waiters, leaver: Leaver, *, poll_interval: float
    ) -> None:
        self._feeds = ChunkFeeds(db, listener, poll_interval=poll_interval)
        self._waiters = waiters
        self._leaver = leaver

    def start(self) -> None:
        self._feeds.start()

    async def stop(self) -> None:
        await self._feeds.stop()

    def read(
        self, start: Start, request_id: UUID, after: int, patience: float | None, cancels: bool
    ) -> ResultStream:
        """A stream of the request that ``start`` gives, from the chunk after this number."""
        return ResultStream(
            self._feeds,
            self._waiters,
            self._leaver,
            start,
            request_id,
            after=after,
            patience=patience,
            cancels=cancels,
        )
