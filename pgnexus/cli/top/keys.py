"""`pgnexus top`: the keys that are pressed while it runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import termios
    import tty
except ImportError:  # no such terminals here
    HAS_KEYS = False
else:
    HAS_KEYS = True


@contextmanager
def quits(event: asyncio.Event) -> Iterator[None]:
    """Set ``event`` when somebody presses q; without a terminal on stdin nobody can."""
    if not HAS_KEYS or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    file, loop = sys.stdin.fileno(), asyncio.get_running_loop()

    def pressed() -> None:
        keys = os.read(file, 100)
        if not keys:
            loop.remove_reader(file)
        if b"q" in keys.lower():
            event.set()

    before = termios.tcgetattr(file)
    tty.setcbreak(file)
    loop.add_reader(file, pressed)
    try:
        yield
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)
