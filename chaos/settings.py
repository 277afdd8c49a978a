"""The settings of a round's workers and callers: everything on, and nothing that waits for long."""

from __future__ import annotations

import json

LEASE = 3.0
BUDGETS = {
    ("agent:spender", "usd_per_day"): 20_000,
    ("agent:one", "tokens_per_day"): 6000,
    ("key:CHAOS_BETA_KEY", "usd_per_month"): 1_000_000,
}
AT_ONCE = {"alpha": 20, "beta/m2": 14, "agent:flood": 6}
BUDGETED_AGENTS = ("spender", "one")

_PLAIN = {
    "POLL_INTERVAL": "1",
    "HEARTBEAT_INTERVAL": "0.3",
    "WORKER_LEASE": str(LEASE),
    "CONCURRENCY": "20",
    "PROVIDER_TIMEOUT": "2",
    "RETRY_BASE_DELAY": "0.05",
    "MAX_ATTEMPTS": "9",
    "BREAKER_SECONDS": "0.5",
    "LOCAL_MODEL": "false",
    "POOL_SIZE": "6",
}


def of_worker(worker: str, provider_port: int) -> dict[str, str]:
    """The environment of one worker."""
    base = f"http://127.0.0.1:{provider_port}/v1/{worker}"
    price = {"input_price": 1_000_000, "output_price": 2_000_000, "cached_price": 0}
    budgets: dict[str, dict[str, int]] = {}
    for (scope, kind), most in BUDGETS.items():
        budgets.setdefault(scope, {})[kind] = most
    groups = {
        "providers": {
            "alpha": {"base_url": f"{base}/alpha", "needs_key": False, "models": ["m1", "m3"]},
            "beta": {"base_url": f"{base}/beta", "api_key_env": "CHAOS_BETA_KEY", "models": ["m2"]},
        },
        "models": dict.fromkeys(("alpha/m1", "alpha/m3", "beta/m2"), price),
        "routes": {
            "simple": ["alpha/m1", "beta/m2"],
            "medium": {"models": ["beta/m2", "alpha/m1"], "over_limit": "wait"},
            "complex": {"models": ["alpha/m3", "beta/m2"], "order": "success_rate"},
            "simple/faq": {"models": ["alpha/m1", "beta/m2"], "share": "all"},
        },
        "limits": {
            "alpha": {"concurrent_calls": AT_ONCE["alpha"], "requests_per_minute": 6000},
            "beta/m2": {"concurrent_calls": AT_ONCE["beta/m2"], "tokens_per_minute": 300_000},
            "agent:flood": {"concurrent_calls": AT_ONCE["agent:flood"]},
        },
        "budgets": budgets,
    }
    environment = {f"PGNEXUS_{name.upper()}": json.dumps(rows) for name, rows in groups.items()}
    return environment | of_caller() | {"CHAOS_BETA_KEY": "sk-nothing"}


def of_caller() -> dict[str, str]:
    """The environment of a process that holds no keys."""
    return {f"PGNEXUS_{name}": value for name, value in _PLAIN.items()}
