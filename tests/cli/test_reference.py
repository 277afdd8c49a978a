"""docs/cli.md says what the command is."""

import typer

from pgnexus.cli import app, exits
from tools import cli_reference


def test_the_reference_is_that_of_the_command():
    written = cli_reference.PAGE.read_text(encoding="utf-8")
    assert written == cli_reference.page(), "run python tools/cli_reference.py"


def test_it_names_every_verb_and_option():
    written = cli_reference.PAGE.read_text(encoding="utf-8")
    commands = dict(cli_reference.walk(typer.main.get_command(app).commands))
    for name, command in commands.items():
        assert f"# `pgnexus {name}" in written
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert all(f"`{spelling}`" in written for spelling in parameter.opts)
    assert len(commands) == 35


def test_it_names_every_exit_code():
    written = cli_reference.PAGE.read_text(encoding="utf-8")
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert len(codes) == 9
    assert all(f"| {code} | " in written for code in codes)
