"""Foreign words in logs and on terminals: none starts a line of its own, none speaks to the terminal."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest
from rich.table import Table

from pgnexus.cli import output as cli_output
from pgnexus.cli.output import Output
from pgnexus.cli.verb import _log_handler
from pgnexus.errors import InvalidRequest
from pgnexus.printable import one_line, visible
from tests.fuzz.hostile import INJECTIONS

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
each = pytest.mark.parametrize("words", INJECTIONS, ids=range(len(INJECTIONS)))
STYLES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(params=[False, True], ids=["a file", "a terminal"])
def output(request):
    made = Output(json=False)
    for console in (made.out, made.err):
        console.file = io.StringIO()
        console._force_terminal = request.param
        console.width = 80
    return made


@each
def test_what_a_verb_prints(output, words):
    table = Table("agent")
    table.add_row(cli_output.Text(words))
    if output.out.is_terminal:
        output.show(table)
    else:
        output.out.print(table)
    output.error(InvalidRequest(f"agent_id: {words}"))
    if output.out.is_terminal:
        output.text(words)
        output.piece(words)
    for console in (output.out, output.err):
        assert not CONTROL.search(STYLES.sub("", console.file.getvalue()))
    said = output.err.file.getvalue().rstrip("\n")
    assert output.err.is_terminal or said.count("\n") == 0


def test_a_program_gets_a_text_as_it_is(capsys):
    Output(json=False).text("\x1b[31mred\x07")
    assert capsys.readouterr().out == "\x1b[31mred\x07\n"


@each
def test_json_says_the_same_and_has_no_control_character(capsys, words):
    Output(json=True).document({"agent": words})
    text = capsys.readouterr().out
    assert not CONTROL.search(text)
    assert json.loads(text) == {"agent": words}


@each
def test_a_record_is_one_line(output, words):
    if output.err.is_terminal:
        return
    handler = _log_handler(output.err)
    handler.setStream(file := io.StringIO())
    logger = logging.Logger("pgnexus.fuzz")
    logger.addHandler(handler)
    logger.error("run %s: %s", words, words)
    assert file.getvalue().count("\n") == 1
    assert not CONTROL.search(file.getvalue())
    try:
        raise ValueError(words)
    except ValueError:
        logger.exception("it failed")
    assert not CONTROL.search(file.getvalue())


@each
def test_words(words):
    assert "\n" not in one_line(words)
    assert not CONTROL.search(one_line(words) + visible(words))
    assert visible(visible(words)) == visible(words)
