"""Before T1: the arguments of `LLMService`'s methods, where they can be given in several ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args
from uuid import UUID

from pgnexus.caller.draft import Options
from pgnexus.errors import InvalidRequest
from pgnexus.messages import Complexity, complexity_for


def laid_over(options: Mapping[str, Any], request: Any) -> tuple[str, Any, Any]:
    """One of `enqueue_many`'s mappings as the arguments of a draft, with ``options`` where it has none."""
    if not isinstance(request, Mapping) or not all(isinstance(name, str) for name in request):
        raise InvalidRequest(f"{request!r:.200} is not a mapping of messages and options")
    given = {**options, **request}
    messages = given.pop("messages", None)
    if given.get("model") in get_args(Complexity):
        raise InvalidRequest(f"model: {given['model']!r} is a complexity, not a model's name")
    first = given.pop("model", None) or given.get("complexity") or complexity_for(given.get("task_type"))
    return first, messages, given


def cancels_on_exit(given: bool | None, options: Options) -> bool:
    """Whether a request ends when its caller leaves: by default if nobody can come back for it."""
    if given is not None:
        return given
    return options.get("request_id") is None and options.get("idempotency_key") is None


def to_uuid(request_id: UUID | str) -> UUID:
    """The id as such; raises `InvalidRequest`."""
    try:
        return request_id if isinstance(request_id, UUID) else UUID(request_id)
    except (ValueError, AttributeError, TypeError):
        raise InvalidRequest(f"{request_id!r} is not a request_id (a UUID)") from None
