"""Rows of the settings that the nexus side works by: vendors, models, routes, limits and budgets.

A scope names what a limit or a budget is for: ``openai`` (a provider), ``openai/gpt-4o`` (one of its models),
``agent:reviewer`` (one agent), ``agent:*`` (each agent that has no row of its own, by itself), or
``key:OPENAI_API_KEY`` (everything that is paid by the key in that environment variable).
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Order = Literal["route", "price", "latency", "success_rate"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProviderSettings(_Row):
    """One vendor's row, laid over the built-in row of that name; a new name adds a vendor."""

    base_url: str | None = Field(None, description="root of its OpenAI-compatible API, up to and with /v1")
    api_key_env: str | None = Field(None, description="environment variable that holds its key")
    api_key_file: Path | None = Field(None, description="file that holds its key, instead of the environment")
    needs_key: bool | None = Field(None, description="false for servers that ask for none")
    wire: Literal["openai", "any-llm"] | None = Field(
        None, description="openai: its OpenAI-compatible API; any-llm: its own, through any-llm-sdk"
    )
    models: list[str] = Field(default_factory=list, description="models to list beside the catalogue's")
    timeout: float | None = Field(None, gt=0, description="seconds for one call, instead of provider_timeout")
    enabled: bool = Field(True, description="false passes the provider over everywhere")


_Price = Annotated[Decimal, Field(ge=0)]


class ModelSettings(_Row):
    """What is known of one model, laid over the catalogue's; prices are US dollars per million tokens."""

    context_length: int | None = Field(None, ge=1, description="tokens of prompt and answer together")
    max_output_tokens: int | None = Field(None, ge=1, description="tokens of the longest answer")
    vision: bool | None = Field(None, description="takes images")
    tools: bool | None = Field(None, description="calls tools")
    json_schema: bool | None = Field(None, description="answers by a JSON schema")
    input_price: _Price | None = Field(None, description="US dollars per million tokens of prompt")
    output_price: _Price | None = Field(None, description="US dollars per million tokens of answer")
    cached_price: _Price | None = Field(None, description="US dollars per million tokens read from its cache")


class RouteSettings(_Row):
    """One route: its candidates, how they are ordered, and what else may be done for its requests."""

    models: list[str] = Field(min_length=1, description='candidates, each "provider/model"')
    order: Order = Field("route", description="by what the candidates are ordered; ties stay as written")
    cache: float | None = Field(None, gt=0, description="seconds for which an answer may be given again")
    share: Literal["agent", "all"] = Field(
        "agent", description='whose cached and shared answers a request may get: its own agent\'s, or "all"'
    )
    longer_context: bool = Field(True, description="a prompt too long for one goes to one with more context")
    over_limit: Literal["next", "wait"] = Field(
        "next", description="when a candidate is over its limit: ask the next, or wait for this one"
    )

    @model_validator(mode="before")
    @classmethod
    def _list_is_models(cls, row: Any) -> Any:
        return {"models": list(row)} if isinstance(row, list | tuple) else row

    @field_validator("models")
    @classmethod
    def _named_in_full(cls, models: list[str]) -> list[str]:
        for ref in models:
            if "/" not in ref:
                raise ValueError(f'"{ref}" must be written "provider/model"')
        return models


class LimitSettings(_Row):
    """Rates of one scope, for all workers together; what is over them waits."""

    requests_per_minute: float | None = Field(None, gt=0, description="provider calls a minute")
    tokens_per_minute: float | None = Field(None, gt=0, description="tokens of prompts and answers a minute")
    concurrent_calls: int | None = Field(None, ge=1, description="provider calls at once")


class BudgetSettings(_Row):
    """What one scope may spend, by UTC days and months; what is over it fails at once with QuotaExceeded."""

    usd_per_day: _Price | None = Field(None, description="US dollars a day")
    usd_per_month: _Price | None = Field(None, description="US dollars a month")
    tokens_per_day: int | None = Field(None, ge=0, description="tokens a day")
    tokens_per_month: int | None = Field(None, ge=0, description="tokens a month")
