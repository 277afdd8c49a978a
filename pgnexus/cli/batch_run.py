"""`pgnexus batch`, its work: lines of IN into requests, a window of them at a time, and their outcomes into OUT."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from pydantic_core import to_json

from pgnexus.caller.service import LLMService
from pgnexus.cli.batch_files import InputFile, InputLine, OutputFile, output_line
from pgnexus.errors import DatabaseUnavailable, InvalidRequest, RequestError, ResultPending
from pgnexus.messages import LLMResult, complexity_for
from pgnexus.storable import parse

_OUTAGE: Final = 300.0  # seconds without a database until the batch gives up; it can be resumed
_LONGEST_WAIT: Final = 5.0
_KEY_TTL: Final = 30 * 86400.0
_HOW: Final = frozenset({"timeout", "priority", "agent_id"})  # options that leave the answer alike
# Arguments of `call` that no line can give.
_NO_OPTIONS: Final = frozenset({"self", "complexity_or_model", "connection", "cancel_on_exit"})


@dataclass
class Tally:
    """What has come of the lines so far, those of earlier runs aside; lines of earlier runs are ``skipped``."""

    lines: int = 0
    skipped: int = 0
    failed_before: int = 0  # of those skipped
    done: int = 0
    failed: int = 0
    tokens: int = 0
    known_cost: Decimal = field(default_factory=Decimal)
    known_costs: int = 0  # how many lines ``known_cost`` is of
    unknown_costs: int = 0

    @property
    def cost(self) -> Decimal | None:
        """Of all lines; None when that of any is not known."""
        return None if self.unknown_costs else self.known_cost

    def count(self, outcome: Mapping[str, Any]) -> None:
        self.done += 1
        self.tokens += outcome["usage"]["total_tokens"] if outcome["usage"] else 0
        if outcome["status"] != "success":
            self.failed += 1
        elif outcome["cost"] is None:
            self.unknown_costs += 1
        if outcome["cost"] is not None:
            self.known_costs += 1
            self.known_cost += Decimal(outcome["cost"])


class BatchRun:
    """One run over a file. Every line that is not in OUT yet is asked, under a key that each run makes alike."""

    def __init__(
        self,
        service: LLMService,
        source: InputFile,
        target: OutputFile,
        *,
        name: str | None,
        defaults: Mapping[str, Any],
        window: int,
        retry_failed: bool,
        on_progress: Callable[[Tally], None],
    ) -> None:
        self._service = service
        self._source = source
        self._target = target
        self._name = name or str(source.path.resolve())
        self._given_name = name
        self._defaults = defaults
        self._slots = asyncio.Semaphore(window)
        self._retry_failed = retry_failed
        self._on_progress = on_progress
        self._outcomes: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.tally = Tally()

    async def run(self) -> None:
        """Ask all lines. Cancelled, it leaves: what was accepted goes on, and the next run finds it."""
        writer, asking = asyncio.create_task(self._write()), asyncio.create_task(self._ask_all())
        try:
            await asyncio.wait({writer, asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()  # where the writer failed, or we were cancelled
            await asyncio.wait({asking})
            self._outcomes.put_nowait(None)
            await writer
        await asking

    async def _ask_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for line in map(self._with_options, self._source):
                    if self._is_done(line):
                        self.tally.skipped += 1
                        self.tally.failed_before += self._target.done.failures(line) > 0
                        continue
                    await self._slots.acquire()
                    group.create_task(self._answer(line))
        except BaseExceptionGroup as group_of_errors:
            raise group_of_errors.exceptions[0] from None

    def _with_options(self, line: InputLine) -> InputLine:
        """The line with what else decides about its answer, so that it is done only where all that is alike."""
        shaping = {key: value for key, value in self._defaults.items() if key not in _HOW}
        if not shaping and self._given_name is None:
            return line
        try:
            own = parse(line.text)
        except ValueError:
            own = None
        added = {key: value for key, value in shaping.items() if not isinstance(own, dict) or key not in own}
        return replace(line, options=to_json([self._given_name, added]))

    def _is_done(self, line: InputLine) -> bool:
        done = self._target.done
        return done.has(line) and not (self._retry_failed and done.failures(line))

    async def _answer(self, line: InputLine) -> None:
        outcome = await self._outcome(line)
        self._outcomes.put_nowait(output_line(line, outcome))
        self.tally.count(outcome)
        self._on_progress(self.tally)

    async def _outcome(self, line: InputLine) -> dict[str, Any]:
        name = str(line.number)
        try:
            asked = self._read(line)
            name = str(asked.pop("id", name))
            result = await self._ask(line, asked)
        except InvalidRequest as error:
            return _refused(name, error)
        return _told(name, result)

    def _read(self, line: InputLine) -> dict[str, Any]:
        try:
            asked = parse(line.text)
        except ValueError as error:
            raise InvalidRequest(f"not JSON: {error}") from None
        if not isinstance(asked, dict):
            raise InvalidRequest("not a JSON object")
        if strange := asked.keys() & _NO_OPTIONS:
            raise InvalidRequest(f"there is no option {min(strange)!r}")
        asked = {**self._defaults, **asked}
        if "prompt" in asked:
            if "messages" in asked:
                raise InvalidRequest("give prompt or messages, not both")
            asked["messages"] = asked.pop("prompt")
        return asked

    async def _ask(self, line: InputLine, asked: dict[str, Any]) -> LLMResult:
        """The line's result, through outages; however often it is asked, it is one request."""
        options = {"idempotency_key": self._key(line, asked), "idempotency_ttl": _KEY_TTL, **asked}
        messages = options.pop("messages", None)
        system = options.pop("system", None)
        if system is not None and messages:
            messages = [{"role": "system", "content": system}, *_as_list(messages)]
        first = (
            options.pop("model", None)
            or options.get("complexity")
            or complexity_for(options.get("task_type"))
        )
        since, wait = time.monotonic(), 0.2
        while True:
            try:
                return await self._service.call(first, messages, **options)
            except RequestError as error:
                if error.result is None:
                    raise
                return error.result
            except ResultPending:
                since = time.monotonic()
            except DatabaseUnavailable:
                if time.monotonic() - since > _OUTAGE:
                    raise
                await asyncio.sleep(random.uniform(wait / 2, wait))
                wait = min(_LONGEST_WAIT, wait * 2)

    def _key(self, line: InputLine, asked: Mapping[str, Any]) -> str:
        """The same for the same request on the same line in every run, until its failure is asked again."""
        identity = [self._name, line.number, self._target.done.failures(line), asked]
        return "batch-" + hashlib.sha256(to_json(identity)).hexdigest()

    async def _write(self) -> None:
        """Outcomes to the disk, all that are there with one fsync."""
        more = True
        while more:
            lines = [await self._outcomes.get()]
            while not self._outcomes.empty():
                lines.append(self._outcomes.get_nowait())
            more = None not in lines
            written = [line for line in lines if line is not None]
            await self._target.write(written)
            for _ in written:
                self._slots.release()  # only now, so that a slow disk holds back what is asked


def _as_list(messages: Any) -> list[Any]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, list):
        raise InvalidRequest("prompt is no text, or messages no list of messages")
    return messages


def _told(name: str, result: LLMResult) -> dict[str, Any]:
    """What OUT says of a result."""
    full = result.model_dump(mode="json")
    fields = (
        "status",
        "response",
        "model",
        "provider",
        "usage",
        "cost",
        "finish_reason",
        "error",
        "request_id",
    )
    outcome = {"id": name} | {key: full[key] for key in fields}
    if result.message and set(result.message) - {"role", "content"}:
        outcome["message"] = full["message"]
    return outcome


def _refused(name: str, error: InvalidRequest) -> dict[str, Any]:
    """What OUT says of a line that was never asked."""
    nothing = dict.fromkeys(("response", "model", "provider", "usage", "cost", "finish_reason", "request_id"))
    fault = {"type": error.type, "message": str(error), "retryable": False}
    return {"id": name, "status": "failed", **nothing, "error": fault}
