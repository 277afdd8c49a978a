"""Writes docs/wire.schema.json out of `pgnexus.messages`: python tools/wire_schema.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from pgnexus.messages import LLMRequest, LLMResult

FILE = Path(__file__).parent.parent / "docs" / "wire.schema.json"


def schema() -> dict[str, Any]:
    """One schema of both messages: ``#/$defs/LLMRequest`` and ``#/$defs/LLMResult``."""
    _, both = models_json_schema([(LLMRequest, "validation"), (LLMResult, "validation")])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The wire of pgnexus, version 1",
        "anyOf": [{"$ref": "#/$defs/LLMRequest"}, {"$ref": "#/$defs/LLMResult"}],
        **both,
    }


def text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
