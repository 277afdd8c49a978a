"""Messages that nobody should send: valid ones of the wire's schema, spoiled in one to three places.

A seed makes the same messages each time. Each message is JSON text, since a queue carries nothing else.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tools.wire_schema import schema

LANES: Final = ("ai_requests", "ai_requests_interactive", "ai_requests_batch")
STATUSES: Final = ("success", "failed", "timeout", "cancelled")
MINE: Final = "fuzz_mine"  # a queue that was made for results
THEIRS: Final = "fuzz_theirs"  # one of somebody else's, which only its owner may use

INJECTIONS: Final = (
    "'; drop table pgnexus.job_results; --",
    '"; select pg_terminate_backend(pid) from pg_stat_activity; --',
    "$$ begin perform pg_sleep(60); end $$",
    "%s %d %n %(asctime)s {0} {request.__class__} ${jndi:ldap://x}",
    "x\n2026-01-01 00:00:00,000 CRITICAL all is lost\r\nTraceback (most recent call last):",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]8;;http://evil\x1b\\link\x9b31m",
    "\u202eright to left\u2066",
    "[bold red]markup[/bold red] [link=http://evil]x[/link] [/]",
    'a="1",b="} 1\n# HELP evil',
    "\r\nX-Injected: 1\r\n\r\n",
    "../../../../etc/passwd",
    "\ufffe\uffff\U0010ffff\ue000",
    "𝕬" * 50,
    "a" * 10_000,
    "",
    " ",
    "\t\n",
    "null",
)
NUMBERS: Final = (
    "0",
    "-1",
    "1e400",
    "1e131071",
    "1e-16383",
    "-1e400",
    "1e-400",
    "9" * 400,
    "1.5",
    "-0.0",
    "2147483648",
    "1e19",
    "0.1e1",
)
_QUEUES: Final = (
    *("ai_requests", "ai_requests_interactive", "ai_requests_batch", "llm_request_workflow", "pgflow_built"),
    *(
        MINE,
        THEIRS,
        "ai_results",
        "no_such_queue",
        "AI_RESULTS",
        "q_ai_results",
        'x"; drop table x; --',
        "r" * 10_000,
    ),
    *("ai_results\n", "pgmq.q_ai_results", "../x", "", "é"),
)
_DEADLINES: Final = (
    *("infinity", "-infinity", "now", "today", "epoch", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59+14:00"),
    *(
        "294276-12-31T23:59:59Z",
        "2030-02-30T00:00:00Z",
        "2001-01-01T00:00:00Z",
        "2030-01-01 00:00",
        "24:00",
        "1e9",
    ),
)
_IMAGES: Final = (
    "data:image/png;base64,%%%",
    "data:image/png;base64,",
    "data:,",
    "file:///etc/passwd",
    "javascript:1",
)
_FIELDS: Final[dict[str, Any]] = {name: defs["properties"] for name, defs in schema()["$defs"].items()}


class Raw(float):
    """A number, or anything else, as it shall stand in the text."""

    text: str

    def __new__(cls, text: str) -> Raw:
        number = super().__new__(cls, 0.0)
        number.text = text
        return number


class Sent(NamedTuple):
    """One message: where it goes, its text, and the id in it if the wire takes that for one."""

    queue: str
    text: str
    request_id: str | None
    reply_to: Any


class Hostile:
    """Draws messages; ids come back in later ones, and results may answer ids that hostile requests have."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._ids: list[str] = []

    def request(self) -> Sent:
        message = self._request()
        self._spoil(message, "LLMRequest", self._request_twists)
        return self._sent(self.random.choice(LANES), message)

    def result(self) -> Sent:
        message = self._result()
        self._spoil(message, "LLMResult", self._result_twists)
        return self._sent("ai_results", message)

    def value(self, depth: int = 3) -> Any:
        """Any JSON."""
        pick = self.random.randrange(12 if depth else 8)
        if pick < 4:
            return self.random.choice(INJECTIONS)
        if pick < 6:
            return Raw(self.random.choice(NUMBERS))
        if pick < 8:
            return self.random.choice((None, True, False, 0, -1, 1.5, [], {}, "x"))
        if pick < 10:
            return [self.value(depth - 1) for _ in range(self.random.randrange(4))]
        return {self._name(): self.value(depth - 1) for _ in range(self.random.randrange(4))}

    def _name(self) -> str:
        names = (
            "role",
            "content",
            "type",
            "text",
            "function",
            "__proto__",
            "__class__",
            "v",
            "status",
            "usage",
        )
        return self.random.choice((*names, *INJECTIONS))

    def _id(self) -> str:
        if self._ids and self.random.random() < 0.05:
            return self.random.choice(self._ids)
        drawn = uuid.UUID(int=self.random.getrandbits(128), version=self.random.choice((1, 3, 4, 4, 5, None)))
        self._ids.append(text := str(drawn))
        return text

    def _request(self) -> dict[str, Any]:
        message = {"v": 1, "request_id": self._id(), "messages": [{"role": "user", "content": "Hello"}]}
        optional = {
            "complexity": "simple",
            "task_type": "chat",
            "agent_id": "fuzzer",
            "reply_to": MINE,
            "priority": "batch",
            "temperature": 0.5,
            "max_tokens": 5,
            "metadata": {"a": [1, {"b": None}]},
            "tools": '[{"type": "function", "function": {"name": "f", "parameters": {}}}]',
            "stream": True,
            "deadline": "2031-01-31T12:00:00+00:00",
        }
        chosen = [name for name in optional if self.random.random() < 0.25]
        return message | {name: optional[name] for name in chosen}

    def _result(self) -> dict[str, Any]:
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        message = {
            "request_id": self._id(),
            "status": self.random.choice(STATUSES),
            "usage": usage,
            "attempts": 1,
        }
        if message["status"] == "success":
            return message | {
                "response": "Hi",
                "model": "m",
                "provider": "p",
                "cost": "0.1",
                "finish_reason": "stop",
            }
        return message | {"error": {"type": "internal", "message": "no", "retryable": False}}

    def _spoil(
        self, message: dict[str, Any], kind: str, twists: list[Callable[[dict[str, Any]], None]]
    ) -> None:
        for _ in range(self.random.randint(1, 3)):
            pick = self.random.random()
            name = self.random.choice(list(_FIELDS[kind]))
            if pick < 0.35:
                message[name] = self.value()
            elif pick < 0.45:
                message.pop(name, None)
            elif pick < 0.55:
                message[self._name()] = self.value()
            else:
                self.random.choice(twists)(message)

    @property
    def _request_twists(self) -> list[Callable[[dict[str, Any]], None]]:
        choice = self.random.choice
        return [
            lambda m: m.update(reply_to=choice(_QUEUES)),
            lambda m: m.update(reply_to=choice(_QUEUES)),
            lambda m: m.update(deadline=choice(_DEADLINES)),
            lambda m: m.update(request_id=self._odd_id(m)),
            lambda m: m.update(v=choice((0, 2, "1", None, [1], 1.0, Raw("1e400")))),
            lambda m: m.update(
                messages=[{"role": self.value(1), "content": self.value(2)} for _ in range(3)]
            ),
            lambda m: m.update(messages=[{"role": "user", "content": self._parts()}]),
            lambda m: m.update(messages=[{"role": "user", "content": choice(INJECTIONS) + "x"}]),
            lambda m: m.update(tools=choice(("[", "{}", "5", "[[]]", "[{}]", self.value(), "[" * 5000))),
            lambda m: m.update(
                response_format=choice(("{", '{"type": "xml"}', '{"type": "json_schema"}', self.value()))
            ),
            lambda m: m.update(agent_id=choice(INJECTIONS), task_type=choice(INJECTIONS)),
            lambda m: m.update(model=choice((*INJECTIONS, "simple", "openai/", "/", "openai/" + "m" * 250))),
            lambda m: m.update(provider=choice((*INJECTIONS, "openai", "local", "nobody"))),
            lambda m: m.update(traceparent=choice((*INJECTIONS, "00-" + "0" * 32 + "-" + "0" * 16 + "-01"))),
            lambda m: m.update(metadata=self._deep()),
            lambda m: m.update(cache=Raw(choice(NUMBERS)), single_flight=True),
            lambda m: m.update(priority=choice(("urgent", 5, None, *INJECTIONS))),
            self._large,
        ]

    @property
    def _result_twists(self) -> list[Callable[[dict[str, Any]], None]]:
        choice = self.random.choice
        return [
            lambda m: m.update(
                cost=choice(
                    (
                        "-1",
                        "NaN",
                        "1e400",
                        "1e131071",
                        "1e-16383",
                        "Infinity",
                        "0x10",
                        "1" * 59,
                        Raw("-5"),
                        "١",
                    )
                )
            ),
            lambda m: m.update(cost=Raw(choice(NUMBERS))),
            lambda m: m.update(status=choice(("done", "Success", "", None, 5, [], "success\n", *INJECTIONS))),
            lambda m: m.update(
                usage={"prompt_tokens": Raw(choice(NUMBERS)), "total_tokens": Raw(choice(NUMBERS))}
            ),
            lambda m: m.update(request_id=self._odd_id(m)),
            lambda m: m.update(attempts=Raw(choice(NUMBERS)), latency_ms=Raw(choice(NUMBERS))),
            lambda m: m.update(message=self._deep()),
            lambda m: m.update(error=self.value()),
            lambda m: m.update(
                error={"type": choice(INJECTIONS), "message": choice(INJECTIONS), "retryable": self.value()}
            ),
            lambda m: m.update(model=choice(INJECTIONS), provider=choice(INJECTIONS)),
            lambda m: m.update(response=choice((*INJECTIONS, 5, [], {}))),
            lambda m: m.update(agent_id=choice(INJECTIONS), finish_reason=choice(INJECTIONS)),
            self._large,
        ]

    def _odd_id(self, message: dict[str, Any]) -> Any:
        known = str(message.get("request_id") or self._id())
        odd = (
            known.upper(),
            known.replace("-", ""),
            "{" + known + "}",
            known + " ",
            known[:-1],
            "urn:uuid:" + known,
        )
        zero = "00000000-0000-0000-0000-000000000000"
        return self.random.choice((*odd, zero, zero.replace("0", "f"), None, 5, [known], {}, *INJECTIONS))

    def _parts(self) -> list[Any]:
        image = {"type": "image_url", "image_url": {"url": self.random.choice(_IMAGES)}}
        return self.random.choice(
            ([image], [image, {"type": "text"}], [{"type": 5}], [{}], [self.value()], [image] * 50)
        )

    def _deep(self) -> Raw:
        levels = self.random.choice((50, 101, 300, 900, 2500, 6000))
        opening, closing = self.random.choice((("[", "]"), ('{"a":', "}")))
        return Raw(opening * levels + _text(self.value(1)) + closing * levels)

    def _large(self, message: dict[str, Any]) -> None:
        if self.random.random() < 0.02:
            message["metadata"] = {"blob": self.random.choice("ab\u00e9") * 1_000_000}

    def _sent(self, queue: str, message: Any) -> Sent:
        if self.random.random() < 0.02:
            message = self.value()
        known, reply_to = _told(message, "request_id"), _told(message, "reply_to")
        if queue == "ai_results" and _told(message, "status") not in STATUSES:
            known = None
        return Sent(queue, _text(message), known.lower() if _is_id(known) else None, reply_to)


def _told(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, dict) else None


def _is_id(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value.lower()
    except ValueError:
        return False


def _text(value: Any) -> str:
    """JSON text with `Raw` in it."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value)
