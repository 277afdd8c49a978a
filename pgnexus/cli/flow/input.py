"""`pgnexus flow`, what is given to it: JSON from the command line, a file or stdin, and flows of modules."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from pgnexus.app import load_flow
from pgnexus.errors import InvalidRequest, InvalidSettings, PgnexusError
from pgnexus.flow.define.blueprint import Blueprint

_SHOWN: Final = 20  # characters around a fault


class UnknownSchedule(PgnexusError, LookupError):
    """No schedule of that name is stored."""

    type = "unknown_schedule"


def read_json(option: str, given: str | None) -> Any:
    """What ``given`` says: JSON itself, ``@file``, or ``-`` for stdin; None when nothing is given."""
    if given is None:
        return None
    text, source = _text(option, given)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{source}: not JSON: {_fault(error)}{_quotes(given)}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{source}: not JSON: {error}") from None


def _text(option: str, given: str) -> tuple[str, str]:
    if given == "-":
        return sys.stdin.read(), f"{option} (stdin)"
    if not given.startswith("@"):
        return given, option
    path = Path(given[1:])
    try:
        return path.read_text(encoding="utf-8-sig"), f"{option} ({path})"
    except OSError as error:
        raise InvalidRequest(f"{option}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{option}: {path} is not UTF-8: byte {error.start}") from None


def _fault(error: json.JSONDecodeError) -> str:
    line = error.doc.splitlines()[error.lineno - 1] if error.doc.strip() else ""
    at = error.colno - 1
    near = line[max(0, at - _SHOWN) : at] + "⟪" + line[at : at + 1] + "⟫" + line[at + 1 : at + _SHOWN]
    where = f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}"
    return f"{where}: {near}" if line else f"{where}: it is empty"


def _quotes(given: str) -> str:
    """What to do about a bare word, which a shell makes of a quoted text."""
    return (
        f"; a text goes in quotes of its own: '{json.dumps(given)}'" if given.strip().isidentifier() else ""
    )


def is_path(name: str) -> bool:
    """Whether it names a flow of a module, not one of the database."""
    return ":" in name


def flow_of(path: str) -> Blueprint:
    """The flow that ``package.module:name`` names, looked for from the current directory on.

    Raises `InvalidRequest`, also for whatever goes wrong in the module while it is imported.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return load_flow(path)
    except InvalidSettings as error:
        raise InvalidRequest(_fault_of(path, str(error))) from error
    except PgnexusError:
        raise
    except Exception as error:
        raise InvalidRequest(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error


def _fault_of(path: str, said: str) -> str:
    """What was said of a flow that is not there; and where its module is, the flows that are."""
    name, _, attribute = path.partition(":")
    module = sys.modules.get(name)
    if module is None or not attribute:
        return said.removeprefix("flows: ")
    names = [name for name, value in vars(module).items() if isinstance(value, Blueprint)]
    there = f"its flows are {', '.join(names)}" if names else "there is no flow in it"
    return f"{path!r}: {name} has no flow of that name; {there}"
