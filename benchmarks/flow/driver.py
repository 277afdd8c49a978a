"""A worker that drives the engine's SQL itself: one plain connection, one thread, nothing in between."""

from __future__ import annotations

import asyncio
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.array import ListBinaryDumper

from benchmarks.flow.cases import Portion
from benchmarks.flow.queries import load
from benchmarks.flow.shapes import SHAPES, handlers

_IDLE = 0.002  # seconds to wait when nothing was there, or for runs to start


class Driver(ABC):
    """Starts the runs it is told to, then works at whatever is ready; `start` may be called from anywhere."""

    def __init__(self, url: str, shape: str, batch: int) -> None:
        self._url = url
        self._flow = shape
        self._handlers = handlers(shape)
        self._batch = batch
        self._worker = uuid4()
        self._queue = ""
        self._connection: psycopg.Connection[Any]
        self._told: queue.SimpleQueue[Portion] = queue.SimpleQueue()
        self._stopping = threading.Event()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work in a thread for the duration of the block; its fault ends the block."""
        self._connection = psycopg.connect(self._url, autocommit=True, row_factory=namedtuple_row)
        self._connection.adapters.register_dumper(list, ListBinaryDumper)  # as the services do
        with self._connection:
            [(self._queue,)] = self._run("queue_name", flow=self._flow)
            self._run("register_worker", worker=self._worker, queue=self._queue)
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.to_thread(self._work))
                try:
                    yield
                finally:
                    self._stopping.set()

    async def start(self, portion: Portion) -> None:
        self._told.put(portion)

    def _work(self) -> None:
        while not self._stopping.is_set():
            with suppress(queue.Empty):
                self._start(self._told.get(timeout=_IDLE))
            while self._round() and not self._stopping.is_set():
                pass

    @abstractmethod
    def _start(self, portion: Portion) -> None:
        """Start these runs."""

    @abstractmethod
    def _round(self) -> bool:
        """Run some tasks; False when there were none."""

    def _run(self, name: str, **params: Any) -> list[Any]:
        cursor = self._connection.execute(load(name), params)
        return cursor.fetchall() if cursor.description else []


def define(url: str, shape: str) -> None:
    """Store the flow, as any client of the contract would."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(load("create_flow"), {"flow": shape})
        for step in SHAPES[shape]:
            params = {"flow": shape, "step": step.slug, "deps": list(step.deps), "kind": step.kind}
            connection.execute(load("add_step"), params)
