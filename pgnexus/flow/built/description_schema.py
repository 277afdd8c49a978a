"""The JSON schema of descriptions: what a model is given that is to compose a flow."""

from __future__ import annotations

from typing import Any

from pgnexus.flow.built.actions import Action, Actions
from pgnexus.flow.built.description import Limits, Slug, StepDescription
from pgnexus.flow.define.values import Codec, name_of


def schema_of(actions: Actions, limits: Limits) -> dict[str, Any]:
    """Descriptions with these actions, within these limits."""
    step = StepDescription.model_json_schema(by_alias=True)
    definitions = step.pop("$defs", {})
    properties = {name: _plain(part) for name, part in step["properties"].items()}
    names = [action.name for action in actions]
    if names:
        lines = "\n".join(map(_line, actions))
        properties["use"] = {"enum": names, "description": f"the action to do:\n{lines}"}
    else:
        del properties["use"]
    properties["prompt"]["maxLength"] = limits.max_prompt_chars
    properties["max_attempts"]["maximum"] = limits.max_attempts
    for name in ("base_delay", "timeout", "start_delay", "wait"):
        properties[name]["maximum"] = limits.max_seconds
    kinds = [{"required": [kind]} for kind in ("use", "prompt", "wait") if kind in properties]
    schema = {
        "type": "object",
        "description": "A flow: steps that depend on each other without a cycle.",
        "properties": {
            "name": Codec(Slug).json_schema(),
            "steps": {
                "type": "array",
                "minItems": 1,
                "maxItems": limits.max_steps,
                "items": {**step, "properties": properties, "oneOf": kinds},
            },
        },
        "required": ["name", "steps"],
        "additionalProperties": False,
    }
    return schema | ({"$defs": definitions} if definitions else {})


def _plain(part: dict[str, Any]) -> dict[str, Any]:
    """Without null: a field that is not wanted is left out."""
    kinds = [kind for kind in part.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in part.items() if key not in ("anyOf", "default", "title")}
    if not kinds:
        return rest
    return rest | (kinds[0] if len(kinds) == 1 else {"anyOf": kinds})


def _line(action: Action) -> str:
    parameters = ", ".join(
        f"{one.name}: {_type(one.codec)}" + (" (optional)" if one.has_default else "")
        for one in action.fillable
    )
    doc = f": {' '.join(action.doc.split())}" if action.doc else ""
    return f"- {action.name}({parameters}) gives {_type(action.output)}{doc}"


def _type(codec: Codec) -> str:
    return "anything" if codec.annotation is Any else name_of(codec.annotation)
