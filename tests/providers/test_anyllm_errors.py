"""The table of foreign errors is complete, and only a vendor's answer says that a key is wrong."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from types import ModuleType
from typing import Any

import httpx
import psycopg
import psycopg_pool
import pytest
from provider_server import KEY

from pgnexus.errors import (
    AuthenticationFailed,
    BadAnswer,
    BadRequest,
    ContentFiltered,
    ContextTooLong,
    ModelNotFound,
    NoCandidate,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaSpent,
    TooManyRequests,
)
from pgnexus.providers.anyllm.errors import translated
from pgnexus.providers.anyllm.exchange import Exchange
from pgnexus.providers.anyllm.table import TABLE, kind_of

LIBRARIES = {
    "any_llm": ["any_llm.exceptions"],
    "anthropic": ["anthropic._exceptions"],
    "openai": ["openai._exceptions"],
    "google": ["google.genai.errors"],
    "cohere": ["cohere.errors", "cohere.core.api_error", "cohere.core.parse_error"],
    "mistralai": ["mistralai.client.errors"],
    "botocore": ["botocore.exceptions"],
    "httpx": ["httpx._exceptions"],
    "httpx2": ["httpx2._exceptions"],
}


def defined(library: str) -> dict[str, type[BaseException]]:
    """The exceptions that the modules of a library define, those of their submodules included."""
    found: dict[str, type[BaseException]] = {}
    for name in LIBRARIES[library]:
        for module in walked(importlib.import_module(name)):
            for label, thing in inspect.getmembers(module, inspect.isclass):
                own = thing.__module__.split(".", 1)[0] == library
                if own and issubclass(thing, BaseException) and label == thing.__name__:
                    found[label] = thing
    return {name: thing for name, thing in found.items() if not issubclass(thing, Warning)}


def walked(module: ModuleType) -> list[ModuleType]:
    path = getattr(module, "__path__", None)
    below = [] if path is None else pkgutil.walk_packages(path, f"{module.__name__}.")
    return [module, *(importlib.import_module(info.name) for info in below)]


class TestTheTable:
    @pytest.mark.parametrize("library", LIBRARIES)
    def test_has_every_exception(self, library):
        exceptions = defined(library)
        assert len(exceptions) >= 6
        if library == "botocore":  # a hundred, most of them of settings: here their bases count
            assert [name for name, thing in exceptions.items() if kind_of(thing) is None] == []
        else:
            assert sorted(set(exceptions) - set(TABLE[library])) == []

    @pytest.mark.parametrize("library", TABLE)
    def test_has_no_exception_that_is_gone(self, library):
        assert sorted(set(TABLE[library]) - set(defined(library)) - {"SSEError"}) == []

    def test_has_every_library(self):
        assert set(TABLE) == set(LIBRARIES)

    def test_every_row_is_of_our_tree(self):
        kinds = {kind for row in TABLE.values() for kind in row.values()}
        assert all(issubclass(kind, ProviderError) for kind in kinds)

    def test_strangers_are_not_in_it(self):
        assert kind_of(KeyError) is None
        assert kind_of(psycopg.OperationalError) is None


def asked(
    error: BaseException, status: int | None = None, body: bytes = b"", **headers: str
) -> ProviderError:
    """What becomes of an error after an answer of this status, or none."""
    exchange = Exchange("v/m", 1000)
    exchange.status, exchange.headers = status, headers
    exchange.body += body
    return translated(error, exchange, where="v/m", key=KEY)


def wrapped(error: Exception) -> BaseException:
    """The error as any-llm hands it on."""
    exceptions = importlib.import_module("any_llm.utils.exception_handler")
    found: BaseException = exceptions.convert_exception(error, "v")
    return found


class TestAnswersOfAVendor:
    @pytest.mark.parametrize(
        ("status", "body", "kind"),
        [
            (400, {"error": {"message": "no"}}, BadRequest),
            (401, {"error": {"message": f"bad key {KEY}"}}, AuthenticationFailed),
            (402, {}, QuotaSpent),
            (403, {}, AuthenticationFailed),
            (404, {}, ModelNotFound),
            (408, {}, ProviderTimeout),
            (400, {"error": {"message": "prompt is too long: 300000 tokens"}}, ContextTooLong),
            (400, {"error": {"code": "content_filter", "message": "no"}}, ContentFiltered),
            (429, {"error": {"message": "slow down"}}, TooManyRequests),
            (429, {"error": {"code": "insufficient_quota", "message": "x"}}, QuotaSpent),
            (500, {"error": {"message": "policy, auth, forbidden"}}, ProviderUnavailable),
            (529, {"error": {"type": "overloaded_error"}}, ProviderUnavailable),
        ],
    )
    def test_the_status_and_the_words_decide(self, status, body, kind):
        raw = json.dumps(body).encode()
        for error in (ValueError("anything"), wrapped(httpx.ReadError("x"))):
            got = asked(error, status, raw, **{"Retry-After": "12"})
            assert (type(got), got.status, got.retry_after) == (kind, status, 12)
            assert KEY not in str(got)

    @pytest.mark.parametrize(
        ("module", "name", "status", "kind"),
        [
            ("anthropic", "AuthenticationError", 401, AuthenticationFailed),
            ("anthropic", "RateLimitError", 429, TooManyRequests),
            ("openai", "InternalServerError", 500, ProviderUnavailable),
        ],
    )
    def test_inside_an_sdks_error(self, module, name, status, kind):
        """An SDK that has an HTTP client of its own: nothing is known but its error."""
        library: Any = importlib.import_module(module)
        client = importlib.import_module("httpx2" if module == "openai" else "httpx")
        response = client.Response(
            status, headers={"retry-after": "3"}, request=client.Request("POST", "http://v"), json={}
        )
        error = getattr(library, name)(
            f"said {KEY}", response=response, body={"error": {"message": f"said {KEY}"}}
        )
        got = asked(wrapped(error))
        assert (type(got), got.status, got.retry_after) == (kind, status, 3)
        assert "said ***" in str(got)

    def test_inside_coheres_and_googles(self):
        cohere: Any = importlib.import_module("cohere.errors")
        got = asked(wrapped(cohere.TooManyRequestsError({"message": "slow"}, headers={"Retry-After": "4"})))
        assert (type(got), got.status, got.retry_after, "slow" in str(got)) == (TooManyRequests, 429, 4, True)
        genai: Any = importlib.import_module("google.genai.errors")
        details = {
            "error": {
                "code": 429,
                "message": "slow",
                "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}],
            }
        }
        got = asked(wrapped(genai.ClientError(429, details, None)))
        assert (type(got), got.retry_after) == (TooManyRequests, 17)

    @pytest.mark.parametrize(
        ("body", "kind", "status"),
        [
            ({"type": "server_error", "message": "x"}, ProviderUnavailable, 502),
            ({"type": "requests", "code": "rate_limit_exceeded", "message": "x"}, TooManyRequests, 429),
            ({"code": 503, "message": "x"}, ProviderUnavailable, 503),
            ({"type": "billing_error", "message": "x"}, QuotaSpent, 402),
        ],
    )
    def test_inside_a_stream(self, body, kind, status):
        """The answer was a 200, and its error has no status of its own."""
        library: Any = importlib.import_module("openai")
        error = library.APIError(
            "x", request=importlib.import_module("httpx2").Request("POST", "http://v"), body=body
        )
        got = asked(wrapped(error), 200, b"data: ...")
        assert (type(got), got.status) == (kind, status)

    def test_inside_amazons(self):
        botocore: Any = importlib.import_module("botocore.exceptions")
        meta = {"HTTPStatusCode": 403, "HTTPHeaders": {}}
        answer = {"Error": {"Code": "AccessDeniedException", "Message": "no"}, "ResponseMetadata": meta}
        assert type(asked(wrapped(botocore.ClientError(answer, "Converse")))) is AuthenticationFailed
        event = {"Error": {"Code": "throttlingException", "Message": "slow"}}
        assert type(asked(wrapped(botocore.EventStreamError(event, "Converse")))) is TooManyRequests


class TestWithoutAnAnswer:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (httpx.ConnectError("refused"), ProviderUnavailable),
            (httpx.ConnectTimeout("x"), ProviderUnavailable),
            (httpx.ReadTimeout("x"), ProviderTimeout),
            (OSError("no route"), ProviderUnavailable),
            (TimeoutError(), ProviderTimeout),
            (TypeError("got an unexpected keyword argument 'auth'"), ProviderError),
            (NotImplementedError("no"), ProviderError),
        ],
    )
    def test_what_is_known_of_it(self, error, kind):
        assert type(asked(error)) is kind
        assert type(asked(wrapped(error))) is kind

    def test_an_answer_of_200_that_nobody_understands(self):
        assert type(asked(wrapped(AttributeError("'str' has no 'choices'")), 200, b'"x"')) is BadAnswer
        assert type(asked(httpx.ReadTimeout("x"), 200, b"{")) is ProviderTimeout

    def test_our_own_error_comes_through(self):
        ours = BadAnswer("cut short")
        sdk: Any = importlib.import_module("anthropic")
        error = sdk.APIConnectionError(request=httpx.Request("POST", "http://v"))
        error.__cause__ = ours
        assert asked(wrapped(error)) is ours

    def test_any_llms_own(self):
        exceptions: Any = importlib.import_module("any_llm.exceptions")
        assert type(asked(exceptions.MissingApiKeyError("v", "V_KEY"))) is NoCandidate
        assert type(asked(exceptions.UnsupportedParameterError("seed", "v"))) is ProviderError


class TestWhoSaysThatAKeyIsWrong:
    """Nobody but a vendor's answer: not a guess by words, and least of all a database without connections."""

    @pytest.mark.parametrize(
        "error",
        [
            psycopg.OperationalError('FATAL: password authentication failed for user "nexus"'),
            psycopg.OperationalError("FATAL: sorry, too many clients already"),
            psycopg_pool.PoolTimeout("couldn't get a connection after 5.00 sec: unauthorized 401"),
            psycopg_pool.TooManyRequests("the pool queue is full"),
            PermissionError(13, "Permission denied"),
            httpx.ProxyError("407 Proxy Authentication Required"),
            ValueError("invalid api key"),
        ],
    )
    @pytest.mark.parametrize("status", [None, 200])
    def test_nobody_else(self, error, status):
        for told in (error, wrapped(error)):
            assert not isinstance(asked(told, status), AuthenticationFailed | TooManyRequests)

    def test_no_guess_of_any_llm(self):
        exceptions: Any = importlib.import_module("any_llm.exceptions")
        assert type(asked(exceptions.AuthenticationError("by the words"))) is ProviderUnavailable
