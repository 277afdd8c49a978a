"""What `enqueue` gives back: a request that is stored, to be asked after, waited for or cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from pgnexus.caller.progress import RequestProgress
from pgnexus.caller.results import JobStatus
from pgnexus.messages import LLMResult

if TYPE_CHECKING:
    from pgnexus.caller.service import LLMService


class RequestHandle:
    """A stored request. A later process finds it again with ``service.handle(request_id)``."""

    def __init__(self, service: LLMService, request_id: UUID, *, created: bool = True) -> None:
        self._service = service
        self.request_id = request_id
        self.created = created  # False: the same request had been accepted before

    def __repr__(self) -> str:
        return f"RequestHandle({self.request_id})"

    async def status(self) -> JobStatus:
        """Where the request is now."""
        return (await self._service.job_result(self.request_id)).status

    async def progress(self) -> RequestProgress | None:
        """How far it has come: attempts, the last error; None when nobody has taken it up, or when it has ended."""
        return await self._service.progress(self.request_id)

    async def result(self, timeout: float | None = None) -> LLMResult:
        """Wait for the result, for ``timeout`` seconds at most; the request goes on past them.

        Raises `ResultPending` when the wait is over, else the `RequestError` of how the request ended.
        """
        return await self._service.wait(self.request_id, timeout=timeout)

    async def cancel(self) -> bool:
        """Cancel the request; False when it had ended before."""
        return await self._service.cancel(self.request_id)
