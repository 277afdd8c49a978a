"""Writes docs/cli.md out of the command itself: python tools/cli_reference.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from pgnexus.cli import app, exits
from pgnexus.cli.verb import SHARED

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

_HEAD = """# The command

Written by `python tools/cli_reference.py` out of the command's own help; a test compares the two.

Without a database of your own, an embedded PostgreSQL is started on demand and shared by all commands that name the
same directory; nothing has to be set up. Every [setting](settings.md) is read from `pgnexus.toml` and the environment.

Results go to stdout, everything about them to stderr. With `--json`, stdout has one JSON document, or one a line where
there may be many (`requests`, `models`, `cancel`, `flow list`, `flow runs`, the events of `up` and of
`flow run --watch`, …); an error is `{"error": {"type", "message"}}` on stderr, with `request_id` or `run_id` where
there is one. When a request or a run fails, `ask`, `result`, `retry --wait` and `flow start --wait` print both: the
result, with its `status` and `error`, is on stdout as for a success, and the error is on stderr. So read stdout for
what became of it, and the exit code for whether it worked.

Where stdout is no terminal, tables are 200 columns wide, or `COLUMNS` when that is set.
"""

_BATCH = """### The files of `batch`

A line of IN is a JSON object: `prompt` (a text) or `messages`, and any option of a request (`model`, `complexity`,
`task_type`, `max_tokens`, `tools`, …), which goes before the same option of the command line. `id` is copied to OUT.
Empty lines are passed over.

```text
{"id": "q1", "prompt": "What is PostgreSQL?"}
{"messages": [{"role": "user", "content": "Sort 3, 1, 2."}], "complexity": "medium", "max_tokens": 50}
```

A line of OUT is written when its result comes, so OUT has another order than IN. It is on the disk before it counts.

| field | what it is |
| --- | --- |
| `line` | the line's number in IN, from 1 |
| `id` | the line's `id`, or its number as text |
| `status` | `success`, `failed`, `timeout` or `cancelled` |
| `response` | the answer's text |
| `message` | the whole message, only where there is more than a text, such as tool calls |
| `model`, `provider`, `finish_reason` | who answered, and why it ended |
| `usage` | `prompt_tokens`, `completion_tokens`, `total_tokens`, `cached_tokens` |
| `cost` | US dollars as decimal text, null when not known |
| `error` | `type`, `message`, `retryable`; null for a success |
| `request_id` | the request, for `pgnexus result`; null for a line that could not be asked |
| `input_hash` | of what is asked: the line of IN, `--name`, and the options that the command line adds to it |

A line that is no request (no JSON, an unknown option, …) becomes a failed line of OUT with `error.type`
`invalid_request`, and stops nothing.

Run the same command again after Ctrl-C, a crash or a change of IN. What OUT has is passed over, unless it was asked
with another `--name` or other options; `--timeout`, `--priority` and `--agent-id` may differ, for they leave the
answer alike; a last line that was
half written is cut off and written again; what was under way is found again by its idempotency key, which is made of
the batch's name (by default the path of IN), the line's number, and what is asked. The key is remembered for 30 days.
So no line is asked twice. Only a provider call that was under way in a process that was killed is made again, as the
[guarantees](guarantees.md) say.

With `--json`, stdout has one object at the end: `lines`, `skipped`, `failed_before`, `done`, `failed`, `tokens`,
`seconds`, `interrupted`, and `cost`, which is null when the cost of any line is not known; `unknown_costs` says of how
many, and `known_cost` is the sum of the others (`known_costs` of them).

When OUT cannot be written any more, as on a full disk, the run stops at once. Nothing is lost: what was asked is
stored, and the same command goes on with it.

`--retry-failed` asks again what OUT has as failed; then OUT has more than one line about it, and the last one counts.
Without it failed lines of earlier runs are passed over like the others, and the exit code stays 1.
"""


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    commands: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    parts = [_HEAD, "## Exit codes\n\n" + _exit_codes(), "## Options of every verb\n\n" + _shared(commands)]
    for name, command in walk(commands):
        parts.append(_verb(name, command))
        if name == "batch":
            parts.append(_BATCH)
    return "\n".join(parts)


def walk(commands: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb by all its words, those of groups behind the group's own."""
    for name, command in commands.items():
        yield before + name, command
        yield from walk(getattr(command, "commands", {}), f"{before}{name} ")


def _exit_codes() -> str:
    rows = re.findall(r"^ *(\d+) +(.+)$", exits.__doc__ or "", re.MULTILINE)
    return _table("| code | meaning |", [f"| {code} | {meaning} |" for code, meaning in rows])


def _shared(commands: dict[str, Any]) -> str:
    options = [one for one in next(iter(commands.values())).params if one.name in SHARED]
    return "They may stand before the verb or after it.\n\n" + _options(options)


def _verb(name: str, command: Any) -> str:
    own = [one for one in command.params if one.name not in SHARED]
    arguments = [one for one in own if one.param_type_name == "argument"]
    options = [one for one in own if one.param_type_name == "option" and one.name != "help"]
    words = " ".join(_placeholder(one) for one in arguments)
    level = "##" if " " not in name else "###"
    parts = [f"{level} `{f'pgnexus {name} {words}'.strip()}`\n", inspect.cleandoc(command.help) + "\n"]
    if arguments:
        rows = [f"| `{_placeholder(one).strip('[]')}` | {_help(one)} |" for one in arguments]
        parts.append(_table("| argument | meaning |", rows))
    if options:
        parts.append(_options(options))
    return "\n".join(parts)


def _options(options: list[Any]) -> str:
    rows = [
        f"| {', '.join(f'`{name}`' for name in [*one.opts, *one.secondary_opts])} | {_default(one)} | {_help(one)} |"
        for one in options
    ]
    return _table("| option | default | meaning |", rows)


def _table(head: str, rows: list[str]) -> str:
    return "\n".join([head, "|" + " --- |" * (head.count("|") - 1), *rows]) + "\n"


def _placeholder(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _help(parameter: Any) -> str:
    return str(parameter.help).replace("|", "\\|")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    if option.default is None or isinstance(option.default, bool):
        return ""
    return f"`{option.default:g}`" if isinstance(option.default, float) else f"`{option.default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
