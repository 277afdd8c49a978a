"""Settings come from the strongest source that names them; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgnexus.caller.draft import RequestDraft
from pgnexus.errors import InvalidSettings
from pgnexus.settings import Settings, redact


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mine.toml"
    monkeypatch.setenv("PGNEXUS_CONFIG", str(path))
    return path


def test_default_then_file_then_environment_then_argument(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("pool_size = 3\n[providers.house]\nbase_url = 'http://house/v1'\ntimeout = 9\n")
    assert (Settings.load().concurrency, Settings.load().pool_size) == (1000, 3)
    monkeypatch.setenv("PGNEXUS_POOL_SIZE", "4")
    monkeypatch.setenv("PGNEXUS_PROVIDERS__HOUSE__BASE_URL", "http://other/v1")
    settings = Settings.load()
    assert settings.pool_size == 4
    assert (settings.providers["house"].base_url, settings.providers["house"].timeout) == (
        "http://other/v1",
        9,
    )
    assert Settings.load(pool_size=5, concurrency=None).pool_size == 5


def test_null_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGNEXUS_REQUEST_TIMEOUT", "null")
    assert Settings.load().request_timeout is None


@pytest.mark.parametrize(
    "text", ["colour = 'red'", "pool_size = 0", "pool_size =", "routes = {simple = ['x']}"]
)
def test_what_is_wrong_in_the_file_is_an_error(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidSettings, match=r"colour|pool_size|cannot read|routes"):
        Settings.load()


def test_a_named_file_must_be_there(file: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"PGNEXUS_CONFIG: there is no file .*mine\.toml"):
        Settings.load()


def test_an_idempotency_key_is_remembered_as_long_as_the_settings_say() -> None:
    settings = Settings.load(idempotency_ttl=60)
    for options, seconds in (({}, 60), ({"idempotency_ttl": 5.0}, 5)):
        draft = RequestDraft.make("simple", "Hello", settings, idempotency_key="key", **options)
        assert json.loads(draft.body)["idempotency_ttl"] == seconds
    assert "idempotency_ttl" not in json.loads(RequestDraft.make("simple", "Hello", settings).body)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PGNEXUS_ROUTES", "{bad", "PGNEXUS_ROUTES: its value is not JSON"),
        ("PGNEXUS_ROUTES", '{"hard": ["openai/gpt-4o"]}', '"hard" is no route'),
        ("PGNEXUS_ROUTES", '{"*": ["openai/gpt-4o"]}', '"\\*" is no route'),
        ("PGNEXUS_ROUTES", '{"simple": ["gpt-4o"]}', 'must be written "provider/model"'),
        ("PGNEXUS_WORKER_LEASE", "5", "worker_lease: 5 s must be twice heartbeat_interval"),
        ("PGNEXUS_REPLY_TO", "Nope!", "reply_to"),
        ("PGNEXUS_PROVIDERS__HOUSE__API_KEY", "sk-1", "name the variable with api_key_env"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=told) as raised:
        Settings.load()
    assert "sk-1" not in str(raised.value)


def test_an_empty_url_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGNEXUS_DATABASE_URL", "")
    assert Settings.load().database_url is None


def test_no_password_is_shown() -> None:
    shown = redact("postgresql://me:one@db/app?sslpassword=two&password=three&sslmode=require")
    assert shown == "postgresql://me:***@db/app?sslpassword=***&password=***&sslmode=require"
