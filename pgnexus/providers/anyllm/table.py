"""Nexus side, beside the way back of a call through any-llm: the exceptions of the libraries, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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

_SDK_STATUSES: Final[dict[str, type[ProviderError]]] = {
    "BadRequestError": BadRequest,
    "AuthenticationError": AuthenticationFailed,
    "PermissionDeniedError": AuthenticationFailed,
    "NotFoundError": ModelNotFound,
    "ConflictError": ProviderUnavailable,
    "UnprocessableEntityError": BadRequest,
    "RateLimitError": TooManyRequests,
    "InternalServerError": ProviderUnavailable,
    "APIError": ProviderUnavailable,
    "APIStatusError": ProviderUnavailable,
    "APIConnectionError": ProviderUnavailable,
    "APITimeoutError": ProviderTimeout,
    "APIResponseValidationError": BadAnswer,
}
_HTTPX: Final[dict[str, type[ProviderError]]] = {
    "ConnectTimeout": ProviderUnavailable,
    "PoolTimeout": ProviderUnavailable,
    "TimeoutException": ProviderTimeout,
    "ReadTimeout": ProviderTimeout,
    "WriteTimeout": ProviderTimeout,
    "DecodingError": BadAnswer,
    "StreamError": BadAnswer,
    "StreamClosed": BadAnswer,
    "StreamConsumed": BadAnswer,
    "ResponseNotRead": BadAnswer,
    "UnsupportedProtocol": ProviderError,
    "LocalProtocolError": ProviderError,
    "InvalidURL": ProviderError,
    "CookieConflict": ProviderError,
    "RequestNotRead": ProviderError,
} | dict.fromkeys(
    (
        "HTTPError",
        "HTTPStatusError",
        "RequestError",
        "TransportError",
        "NetworkError",
        "ConnectError",
        "ReadError",
        "WriteError",
        "CloseError",
        "ProxyError",
        "ProtocolError",
        "RemoteProtocolError",
        "TooManyRedirects",
    ),
    ProviderUnavailable,
)

TABLE: Final[Mapping[str, Mapping[str, type[ProviderError]]]] = {
    "any_llm": {
        "AnyLLMError": ProviderError,
        "RateLimitError": TooManyRequests,
        "AuthenticationError": AuthenticationFailed,
        "InvalidRequestError": BadRequest,
        "ProviderError": ProviderUnavailable,
        "ContentFilterError": ContentFiltered,
        "ProviderFileNotFoundError": BadRequest,
        "ModelNotFoundError": ModelNotFound,
        "ContextLengthExceededError": ContextTooLong,
        "MissingApiKeyError": NoCandidate,
        "UnsupportedProviderError": NoCandidate,
        "UnsupportedParameterError": ProviderError,
        "InsufficientFundsError": QuotaSpent,
        "UpstreamProviderError": ProviderUnavailable,
        "GatewayTimeoutError": ProviderUnavailable,
        "_FinishReasonError": BadAnswer,
        "LengthFinishReasonError": BadAnswer,
        "ContentFilterFinishReasonError": ContentFiltered,
        "BatchNotCompleteError": ProviderError,
    },
    "anthropic": _SDK_STATUSES
    | {
        "AnthropicError": ProviderError,
        "APIWebhookValidationError": ProviderError,
        "RetryableError": ProviderUnavailable,
        "RequestTooLargeError": ContextTooLong,
        "ServiceUnavailableError": ProviderUnavailable,
        "OverloadedError": ProviderUnavailable,
        "DeadlineExceededError": ProviderUnavailable,
    },
    "openai": _SDK_STATUSES
    | {
        "OpenAIError": ProviderError,
        "OAuthError": AuthenticationFailed,
        "SubjectTokenProviderError": ProviderError,
        "LengthFinishReasonError": BadAnswer,
        "ContentFilterFinishReasonError": ContentFiltered,
        "InvalidWebhookSignatureError": ProviderError,
        "WebSocketConnectionClosedError": ProviderUnavailable,
        "WebSocketQueueFullError": ProviderUnavailable,
    },
    "google": {
        "APIError": ProviderUnavailable,
        "ClientError": BadRequest,
        "ServerError": ProviderUnavailable,
        "UnknownApiResponseError": BadAnswer,
        "ContinuationInterruptedError": BadAnswer,
        "UnknownFunctionCallArgumentError": ProviderError,
        "UnsupportedFunctionError": ProviderError,
        "FunctionInvocationError": ProviderError,
    },
    "cohere": {
        "ApiError": ProviderUnavailable,
        "ParsingError": BadAnswer,
        "BadRequestError": BadRequest,
        "ClientClosedRequestError": ProviderUnavailable,
        "ForbiddenError": AuthenticationFailed,
        "GatewayTimeoutError": ProviderUnavailable,
        "InternalServerError": ProviderUnavailable,
        "InvalidTokenError": AuthenticationFailed,
        "NotFoundError": ModelNotFound,
        "NotImplementedError": ProviderError,
        "ServiceUnavailableError": ProviderUnavailable,
        "TooManyRequestsError": TooManyRequests,
        "UnauthorizedError": AuthenticationFailed,
        "UnprocessableEntityError": BadRequest,
    },
    "mistralai": {
        "MistralError": ProviderUnavailable,
        "SDKError": ProviderUnavailable,
        "HTTPValidationError": BadRequest,
        "ObservabilityError": ProviderError,
        "ResponseValidationError": BadAnswer,
        "NoResponseError": ProviderUnavailable,
    },
    "botocore": {
        "BotoCoreError": ProviderError,  # what is wrong here, such as a region or a profile
        "UndefinedModelAttributeError": ProviderError,
        "ClientError": ProviderUnavailable,
        "EventStreamError": BadAnswer,
        "ConnectionError": ProviderUnavailable,
        "HTTPClientError": ProviderUnavailable,
        "ConnectTimeoutError": ProviderUnavailable,
        "ReadTimeoutError": ProviderTimeout,
        "ResponseStreamingError": BadAnswer,
        "IncompleteReadError": BadAnswer,
        "ChecksumError": BadAnswer,
        "FlexibleChecksumError": BadAnswer,
        "CapacityNotAvailableError": ProviderUnavailable,
        "NoCredentialsError": NoCandidate,
        "PartialCredentialsError": NoCandidate,
        "CredentialRetrievalError": NoCandidate,
        "NoAuthTokenError": NoCandidate,
        "TokenRetrievalError": NoCandidate,
        "SSOError": NoCandidate,
        "LoginError": NoCandidate,
        "NoRegionError": NoCandidate,
        "ProfileNotFound": NoCandidate,
    },
    "httpx": _HTTPX,
    "httpx2": _HTTPX | {"SSEError": BadAnswer},
}
"""What an error of a library becomes when it brings no answer; a class that is not here is what its base is."""


def kind_of(error: type[BaseException]) -> type[ProviderError] | None:
    """The row of the table for a class, by its own name or the nearest of its bases; None for strangers."""
    for base in error.__mro__:
        found = TABLE.get(library_of(base), {}).get(base.__name__)
        if found is not None:
            return found
    return None


def library_of(kind: type[BaseException]) -> str:
    """The package that a class is of."""
    return kind.__module__.split(".", 1)[0]
