"""Nexus side, read by the router and the wires: the vendors that pgnexus knows, as rows.

A vendor that speaks OpenAI's wire is one row here or in the settings (``providers.NAME.base_url``).
Patterns are those of `fnmatch`. A model's name is passed on to its vendor as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from pgnexus.messages import ApiVersion

Wire = Literal["openai", "any-llm"]

LOCAL: Final = "local"
LOCAL_MODEL: Final = "smollm2-135m-instruct"
LOCAL_CONTEXT: Final = 4096  # each 1,000 tokens of a call's context take 23 MB


@dataclass(frozen=True, slots=True)
class Vendor:
    """One vendor: where it is, how it is asked, and which models we know of it."""

    name: str
    base_url: str
    api_key_env: tuple[str, ...] = ()
    needs_key: bool = True
    apis: tuple[ApiVersion, ...] = ("chat_completions",)
    price_id: str | None = None
    """Its name in genai-prices; None: its prices are not known."""
    free: bool = False
    models: tuple[str, ...] = ()
    """Models to list; the first is asked when a request names the vendor alone and no route has one."""
    serves: tuple[str, ...] = ()
    """Patterns of the model names that are this vendor's own, so that a name alone finds it."""
    serves_others: bool = True
    """False: asking for a model that is not in ``models`` is refused here, not there."""
    blind: tuple[str, ...] = ()
    """Patterns of its models that take no images."""
    toolless: tuple[str, ...] = ()
    """Patterns of its models that call no tools."""
    schemaless: tuple[str, ...] = ()
    """Patterns of its models that keep to no JSON schema."""
    schemaless_over: Wire | None = None
    """The wire on which it passes over a JSON schema without a word."""
    context_length: int | None = None
    """Tokens that any of its models takes; None: it depends on the model."""
    responses_only: tuple[str, ...] = ()
    """Patterns of its models that speak no chat completions."""
    max_tokens_field: str = "max_tokens"
    seed_field: str = "seed"
    stream_options: bool = True
    """False: it refuses ``stream_options``, and counts tokens in its streams unasked."""
    developer_role: bool = False
    """True: it knows the role ``developer``; others are sent ``system``."""
    timeout: float | None = None
    configured: bool = False
    """True: named in the settings, so that a server which needs no key is believed to be there."""
    api_key_file: Path | None = None
    any_llm: str | None = None
    """Its name in any-llm, which speaks its own wire; None: any-llm is not needed."""
    any_llm_url: str = ""
    """Root of its own API; empty: the one its SDK knows."""
    sdk: str = "any_llm"
    """The module that any-llm asks it through."""
    asked_by: Wire | None = None
    """What the settings say it is asked by."""

    @property
    def wire(self) -> Wire:
        """What it is asked by: the settings' word, else its own wire where that can be spoken."""
        if self.asked_by is not None:
            return self.asked_by
        if not self.base_url and self.any_llm is not None:
            return "any-llm"
        return "any-llm" if self.any_llm is not None and _installed(self.sdk) else "openai"

    @property
    def missing(self) -> str | None:
        """What must be installed before it can be asked, and how; None when nothing must."""
        if self.wire == "openai" or _installed(self.sdk):
            return None
        return "any-llm is not installed: pip install 'pgnexus[any-llm]'"

    def has_model(self, model: str) -> bool:
        """Whether a name without a vendor means this one."""
        return model in self.models or _matches(model, self.serves)

    def sees(self, model: str) -> bool:
        return not _matches(model, self.blind)

    def calls_tools(self, model: str) -> bool:
        return not _matches(model, self.toolless)

    def keeps_schema(self, model: str) -> bool:
        return self.wire != self.schemaless_over and not _matches(model, self.schemaless)

    def describes(self, model: str) -> bool:
        """Whether its patterns were written with this model in mind, so that what they leave out it can do."""
        return (self.name, model) in _DESCRIBED

    def speaks(self, model: str) -> tuple[ApiVersion, ...]:
        """The APIs through which the model can be asked, the usual one first."""
        if self.wire == "any-llm":
            return ("chat_completions",)
        return ("responses",) if _matches(model, self.responses_only) else self.apis


@lru_cache
def _installed(module: str) -> bool:
    """Whether any-llm and a module of one of its SDKs are there; imports neither."""
    try:
        return find_spec("any_llm") is not None and find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


@lru_cache(maxsize=4096)
def _matches(model: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(model, pattern) for pattern in patterns)


BUILT_IN: Final = (
    Vendor(
        "openai",
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        apis=("chat_completions", "responses"),
        price_id="openai",
        models=("gpt-4o", "gpt-4o-mini", "gpt-5.3-codex", "gpt-5.4-mini", "gpt-6-luna", "gpt-6.1-sol"),
        serves=("gpt-*", "chatgpt-*", "codex-*", "o1*", "o3*", "o4*"),
        blind=("gpt-3.5*", "gpt-4", "gpt-4-0*", "gpt-oss*", "o1-mini*", "o3-mini*"),
        toolless=("o1-mini*", "o1-preview*", "*-deep-research"),
        schemaless=("gpt-3.5*", "gpt-4", "gpt-4-*", "gpt-4o-2024-05-13", "o1-mini*", "o1-preview*"),
        responses_only=("*codex*", "gpt-*-pro", "o1-pro*", "o3-pro*", "*-deep-research"),
        max_tokens_field="max_completion_tokens",
        developer_role=True,
    ),
    Vendor(
        "anthropic",
        "https://api.anthropic.com/v1",
        ("ANTHROPIC_API_KEY",),
        price_id="anthropic",
        models=("claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5"),
        serves=("claude-*",),
        blind=("claude-2*", "claude-v1*"),
        schemaless_over="openai",
        any_llm="anthropic",
        any_llm_url="https://api.anthropic.com",
        sdk="anthropic",
    ),
    Vendor(
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        price_id="google",
        models=("gemini-3.8-flash", "gemini-3.5-flash-lite", "gemini-2.5-pro"),
        serves=("gemini-*", "gemma-*"),
        any_llm="gemini",
        any_llm_url="https://generativelanguage.googleapis.com",
        sdk="google.genai",
    ),
    Vendor(
        "xai",
        "https://api.x.ai/v1",
        ("XAI_API_KEY",),
        price_id="x-ai",
        models=("grok-4.7", "grok-4-fast-non-reasoning"),
        serves=("grok-*",),
        blind=("grok-3*", "grok-code*"),
    ),
    Vendor(
        "mistral",
        "https://api.mistral.ai/v1",
        ("MISTRAL_API_KEY",),
        price_id="mistral",
        models=("mistral-medium-latest", "mistral-small-latest", "mistral-large-4"),
        serves=("mistral-*", "ministral-*", "magistral-*", "codestral*", "devstral-*", "pixtral-*"),
        seed_field="random_seed",
        stream_options=False,
        blind=("codestral*", "devstral-*", "mistral-7b*", "mistral-nemo*", "mistral-tiny*"),
    ),
    Vendor(
        "deepseek",
        "https://api.deepseek.com/v1",
        ("DEEPSEEK_API_KEY",),
        price_id="deepseek",
        models=("deepseek-v4-flash", "deepseek-v4-pro"),
        serves=("deepseek-*",),
        blind=("*",),
        schemaless=("*",),
    ),
    Vendor(
        "groq",
        "https://api.groq.com/openai/v1",
        ("GROQ_API_KEY",),
        price_id="groq",
        models=("openai/gpt-oss-120b", "openai/gpt-oss-20b", "llama-3.3-70b-versatile"),
        blind=("openai/gpt-oss-*", "llama-3*"),
        schemaless=("llama-3*",),
    ),
    Vendor(
        "together",
        "https://api.together.xyz/v1",
        ("TOGETHER_API_KEY",),
        price_id="together",
        models=("zai-org/GLM-5.3", "deepseek-ai/DeepSeek-V4.1-Flash"),
        blind=("zai-org/*", "deepseek-ai/*"),
    ),
    Vendor(
        "openrouter",
        "https://openrouter.ai/api/v1",
        ("OPENROUTER_API_KEY",),
        price_id="openrouter",
        models=("anthropic/claude-sonnet-5.5", "google/gemini-3.8-flash", "openai/gpt-4o"),
        blind=("deepseek/*", "openai/gpt-oss-*"),
        developer_role=True,
    ),
    Vendor(
        "cohere",
        "",  # what it has of OpenAI's wire is behind its own
        ("CO_API_KEY", "COHERE_API_KEY"),
        price_id="cohere",
        models=("command-a-03-2025", "command-r7b-12-2024"),
        serves=("command-*", "c4ai-*"),
        blind=("command-a-0*", "command-r*", "c4ai-aya-expanse*"),
        any_llm="cohere",
        sdk="cohere",
    ),
    Vendor(
        "bedrock",
        "",
        ("AWS_BEARER_TOKEN_BEDROCK",),
        price_id="aws",
        models=("amazon.nova-pro-v1:0", "amazon.nova-lite-v1:0", "amazon.nova-micro-v1:0"),
        serves=("amazon.*",),
        blind=("amazon.nova-micro*", "amazon.titan*"),
        any_llm="bedrock",
        sdk="boto3",
    ),
    Vendor("ollama", "http://127.0.0.1:11434/v1", ("OLLAMA_API_KEY",), needs_key=False),
    Vendor("vllm", "http://127.0.0.1:8000/v1", ("VLLM_API_KEY",), needs_key=False, developer_role=True),
    Vendor(
        LOCAL,
        "",  # its server is started on first use
        needs_key=False,
        free=True,
        models=(LOCAL_MODEL,),
        serves_others=False,
        blind=("*",),
        context_length=LOCAL_CONTEXT,
    ),
)


_DESCRIBED: Final = frozenset((vendor.name, model) for vendor in BUILT_IN for model in vendor.models)
