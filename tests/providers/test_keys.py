"""Keys: where they come from, and that nothing which is said of a bad one shows it."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from provider_server import KEY

from pgnexus.errors import InvalidSettings
from pgnexus.providers import build_providers
from pgnexus.providers.catalogue import catalogue
from pgnexus.providers.keys import find, source
from pgnexus.settings import Settings


def vendor(**row):
    return catalogue(Settings(providers={"gemini": row}))["gemini"]


class TestWhereAKeyComesFrom:
    @pytest.mark.parametrize(
        ("environ", "place"),
        [
            ({}, None),
            ({"GEMINI_API_KEY": "  "}, None),
            ({"GEMINI_API_KEY": f" {KEY}\n"}, "GEMINI_API_KEY"),
            ({"GOOGLE_API_KEY": KEY}, "GOOGLE_API_KEY"),
            ({"GEMINI_API_KEY": KEY, "GOOGLE_API_KEY": "other"}, "GEMINI_API_KEY"),
        ],
    )
    def test_the_environment(self, environ, place):
        key = find(vendor(), environ)
        assert (key and key.source) == place
        assert key is None or key.value == KEY
        assert source(vendor(), environ) == place

    def test_a_file_that_a_variable_names(self, tmp_path: Path):
        file = tmp_path / "key"
        file.write_text(f"\n {KEY} \r\n")
        key = find(vendor(), {"GOOGLE_API_KEY_FILE": str(file)})
        assert key is not None
        assert (key.value, key.source) == (KEY, "GOOGLE_API_KEY_FILE")

    def test_a_file_that_the_settings_name(self, tmp_path: Path):
        file = tmp_path / "key"
        file.write_text(KEY)
        key = find(vendor(api_key_file=file), {"GEMINI_API_KEY": "other"})
        assert key is not None
        assert (key.value, key.source) == (KEY, "providers.gemini.api_key_file")

    def test_a_server_of_our_own_with_a_key_in_a_file(self, tmp_path: Path):
        file = tmp_path / "key"
        file.write_text(KEY)
        rows = Settings(providers={"house": {"base_url": "http://host/v1", "api_key_file": file}})
        assert "house" in build_providers(rows, {})


class TestKeysThatCannotBeUsed:
    @pytest.mark.parametrize(
        "content", [None, b"", b" \n", b"\xff\xfe" + KEY.encode(), b"k" * 100_000, "directory"]
    )
    def test_files(self, tmp_path: Path, content):
        file = tmp_path / "key"
        if content == "directory":
            file.mkdir()
        elif content is not None:
            file.write_bytes(content)
        for environ, row, setting in (
            ({"GEMINI_API_KEY_FILE": str(file)}, {}, "GEMINI_API_KEY_FILE"),
            ({}, {"api_key_file": file}, "providers.gemini.api_key_file"),
        ):
            with pytest.raises(InvalidSettings) as caught:
                build_providers(Settings(providers={"gemini": row}), environ)
            assert str(caught.value).startswith(f"{setting}: {file}: ")
            shown(caught.value)

    @pytest.mark.parametrize("key", [f"{KEY}\nX-Evil: 1", f"{KEY}ü", f"{KEY}\x00"])
    @pytest.mark.parametrize("in_file", [False, True])
    def test_what_no_header_can_hold(self, tmp_path: Path, key, in_file):
        (tmp_path / "key").write_text(key)
        environ = {"OPENAI_API_KEY_FILE": str(tmp_path / "key")} if in_file else {"OPENAI_API_KEY": key}
        with pytest.raises(InvalidSettings, match=rf"^{next(iter(environ))}: .* no HTTP header") as caught:
            build_providers(Settings(), environ)
        if in_file:  # the environment itself is a local of this test, and of whoever starts us
            shown(caught.value)
        assert KEY not in str(caught.value)


def shown(error: BaseException) -> None:
    """The key is in nothing that a traceback shows of our own frames, locals included."""
    frames = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in frames.stack if "/pgnexus/" in frame.filename]
    assert len(ours) >= 2
    assert not any(KEY in str(frame.locals) for frame in ours)
