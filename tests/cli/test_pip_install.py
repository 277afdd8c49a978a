"""tools/pip-install shows its progress in one line of the terminal, however narrow that is."""

import fcntl
import os
import pty
import struct
import termios
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "pip-install"


@pytest.mark.parametrize(("columns", "width"), [(40, 40), (0, 80)])
def test_a_line_never_wraps(tmp_path, columns, width):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexec sleep 0.3\n")
    python.chmod(0o755)
    (tmp_path / ".venv" / "install.log").write_text(f"Collecting {'x' * 150}\n")
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.chdir(tmp_path)
        os.execv(SCRIPT, [str(SCRIPT), "Working", "install", "it"])
    shown = read(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    steps = [line for line in shown.split("\r\x1b[K") if "Collecting" in line]
    assert steps
    assert all(len(line) == width - 1 for line in steps)


def read(terminal):
    """All that is written there until its end, which Linux tells as an error."""
    shown = b""
    try:
        while some := os.read(terminal, 4096):
            shown += some
    except OSError:
        pass
    os.close(terminal)
    return shown.decode()
