"""The command as people and scripts run it: a process of its own, its environment, its output."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

from pgnexus.cli import main

COMMAND = (sys.executable, "-m", "pgnexus")


class Ended:
    """A command that has ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"exit code {self.code}\nstdout: {self.out}\nstderr: {self.err}"

    @property
    def documents(self) -> list[Any]:
        """stdout as JSON, a document a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def document(self) -> Any:
        [document] = self.documents
        return document

    @property
    def error(self) -> Any:
        """What --json says on stderr."""
        return json.loads(self.err)["error"]


class Running:
    """A command that runs; what it writes to stderr and stdout is gathered line by line."""

    def __init__(self, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            (*COMMAND, *arguments), env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, text: str) -> str:
        """The first line with ``text`` in it."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self._changed:
            assert self._changed.wait_for(lambda: found() or self._closed, 30), self.lines
            assert found(), self.lines
            return found()[0]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait until it has ended by itself."""
        code = self.process.wait(30)
        self._reader.join(5)
        return Ended(code, "".join(self.lines), "")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@pytest.fixture
def env(llmock: Any, database_url: str) -> dict[str, str]:
    """An environment in which all calls go to llmock and nothing waits longer than a test can."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PGNEXUS_")},
        "PGNEXUS_DATABASE_URL": database_url,
        "PGNEXUS_DEFAULT_PROVIDER": "mock",
        "PGNEXUS_PROVIDERS__MOCK__BASE_URL": llmock.base_url(),
        "PGNEXUS_PROVIDERS__MOCK__NEEDS_KEY": "false",
        "PGNEXUS_LOCAL_MODEL": "false",
        "PGNEXUS_POLL_INTERVAL": "1",
        "PGNEXUS_HEARTBEAT_INTERVAL": "0.2",
        "PGNEXUS_WORKER_LEASE": "3",
        "PGNEXUS_RETRY_BASE_DELAY": "0.05",
        "PGNEXUS_ROUTER_RETRIES": "0",
    }


@pytest.fixture
def run(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Run a command to its end, in this process: a new one costs half a second."""

    def run(*arguments: Any, stdin: str = "", unset: tuple[str, ...] = (), **over: str) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as context:
            for name in [name for name in os.environ if name.startswith("PGNEXUS_")]:
                context.delenv(name)
            for name, value in {**env, **over}.items():
                if (name.startswith("PGNEXUS_") or name in over) and name not in unset:
                    context.setenv(name, value)
            context.setattr(sys, "stdin", io.StringIO(stdin))
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
                main([str(argument) for argument in arguments])
        return Ended(int(left.value.code or 0), out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def run_apart(env: dict[str, str]) -> Callable[..., Ended]:
    """Run a command to its end in a process of its own."""

    def run(*arguments: str) -> Ended:
        done = subprocess.run(
            (*COMMAND, *arguments), env=env, text=True, capture_output=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def start(env: dict[str, str]) -> Iterator[Callable[..., Running]]:
    """Start a command; killed when the test ends, if it still lives."""
    started: list[Running] = []

    def start(*arguments: str, **over: str) -> Running:
        started.append(Running(tuple(map(str, arguments)), {**env, **over}))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        if one.process.stdout is not None:
            one.process.stdout.close()
