"""After T4: what a stored result is to the one who asked."""

from __future__ import annotations

from pgnexus.errors import error_for
from pgnexus.messages import LLMResult


def successful(result: LLMResult) -> LLMResult:
    """The result; raises the `RequestError` of how the request ended, if that is no success."""
    if result.ok:
        return result
    error = result.error
    kind = error_for(error.type if result.status == "failed" and error else result.status)
    raise kind(error.message if error else result.status, request_id=result.request_id, result=result)
