"""All processes of one round: a provider, workers, callers, and how each of them reaches the database."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from chaos import bouncer, settings
from chaos.bouncer import Bouncer
from chaos.clock import Clock, library
from chaos.process import Process
from chaos.proxy import Proxy
from chaos.record import Record
from chaos.server import PostgresServer, free_port

FLOW = ("--flow", "chaos.flows:brief")
WORKERS = (FLOW, FLOW, ("--only", "nexus"), ("--only", "poller"))  # what each `pgnexus up` runs
CALLERS = 3
RATE = 5.0  # things that a caller asks a second
PROXIES = 2
_STARTS = 8  # times a process is started until it comes up: the database may be away


@dataclass(frozen=True)
class Way:
    """How a process reaches the database; ``listen_url`` is for a pooler in transaction mode."""

    kind: str
    url: str
    listen_url: str | None = None


@dataclass
class Member:
    """One process, and what to start in its place."""

    process: Process
    role: str  # worker or caller
    way: Way
    clock: Clock | None
    arguments: tuple[str, ...] = ()


class System:
    """``url`` is the round's database on ``server``; all files go to ``path``."""

    def __init__(self, seed: int, path: Path, server: PostgresServer, database: str) -> None:
        self.seed = seed
        self.path = path
        self.server = server
        self.database = database
        self.record = Record()
        self.members: dict[str, Member] = {}
        self.everybody: dict[str, Process] = {}
        self.database_lock = asyncio.Lock()  # one fault at a time for the server itself
        self.pooler_lock = asyncio.Lock()  # and for PgBouncer
        self.provider: Process | None = None
        self.healed = False
        self.proxies: list[Proxy] = []
        self.bouncer: Bouncer | None = None
        self._replacing: list[asyncio.Task[None]] = []
        self._provider_port = free_port()
        self._provider_starts = 0
        self._numbers = {"worker": 0, "caller": 0}
        self._ways: dict[str, set[str]] = defaultdict(set)

    @property
    def account(self) -> Path:
        """The provider's file."""
        return self.path / "account.jsonl"

    @property
    def ledgers(self) -> list[Path]:
        """The callers' files."""
        return sorted(self.path.glob("*.ledger"))

    @property
    def url(self) -> str:
        """Straight to the database."""
        return self.server.url(self.database)

    async def start(self) -> None:
        """Start everybody; the callers begin to ask."""
        self.proxies = [Proxy(self.server.port) for _ in range(PROXIES)]
        for proxy in self.proxies:
            await proxy.start()
        if bouncer.PROGRAM is not None:
            self.bouncer = Bouncer(self.path / "bouncer", self.server.port, pool_size=20)
            await asyncio.to_thread(self.bouncer.start)
        await self.start_provider()
        await asyncio.gather(*(self.start_worker(arguments) for arguments in WORKERS))
        await asyncio.gather(*(self.start_caller() for _ in range(CALLERS)))

    async def start_provider(self) -> None:
        self._provider_starts += 1
        given = ["--port", self._provider_port, "--account", self.account]
        given += ["--seed", f"{self.seed}.{self._provider_starts}", *(["--healthy"] if self.healed else [])]
        log = self.path / "provider.log"
        self.provider = await Process.start(f"p{self._provider_starts}", ["chaos.provider", *given], log)

    async def start_worker(self, arguments: tuple[str, ...]) -> None:
        name = self._named("worker")
        way, clock = self._way(name), self._clock(name)
        environment = settings.of_worker(name, self._provider_port)
        if way.listen_url:
            environment["PGNEXUS_LISTEN_URL"] = way.listen_url
        command = ["pgnexus", "--database-url", way.url, "up", *arguments]
        process = await self._start(name, command, environment, clock)
        self.members[name] = Member(process, "worker", way, clock, arguments)

    async def start_caller(self, after: str | None = None) -> None:
        """A new one; ``after`` names the one that was killed, whose undecided requests it asks again."""
        name = self._named("caller")
        way, clock = self._way(name), self._clock(name)
        command = ["chaos.caller", "--url", way.url, "--ledger", self.path / f"{name}.ledger", "--name", name]
        command += ["--seed", self.seed, "--rate", RATE]
        command += ["--listen-url", way.listen_url] if way.listen_url else []
        command += ["--after", self.path / f"{after}.ledger"] if after else []
        process = await self._start(name, command, settings.of_caller(), clock)
        self.members[name] = Member(process, "caller", way, clock)

    async def kill(self, member: Member) -> None:
        """kill -9, and have a new one start in its place: healed is when that is ready."""

        async def replaced() -> None:
            with self.record.striking(f"kill {member.role}", member.process.name):
                await member.process.kill()
                killed.set()
                await self._replace(member)

        killed = asyncio.Event()
        self._replacing.append(asyncio.create_task(replaced()))
        await killed.wait()

    async def complete(self) -> None:
        """Wait until all that were killed have been replaced."""
        await asyncio.gather(*self._replacing)

    async def _replace(self, member: Member) -> None:
        if member.role == "worker":
            await self.start_worker(member.arguments)
        else:
            await self.start_caller(after=member.process.name)

    def behind(self, kind: str) -> tuple[str, ...]:
        """The processes that reach the database this way."""
        return tuple(sorted(self._ways[kind]))

    def take(self, die: random.Random, role: str | None = None) -> Member | None:
        """Anybody, or anybody of this role, whom nothing else is done to meanwhile; `give_back` ends that."""
        names = [
            name
            for name, one in sorted(self.members.items())
            if role in (None, one.role) and one.process.alive
        ]
        return self.members.pop(die.choice(names)) if names else None

    def give_back(self, member: Member) -> None:
        self.members[member.process.name] = member

    async def heal(self) -> None:
        """The provider is well from now on, also when it is started again."""
        self.healed = True
        async with aiohttp.ClientSession() as session:
            await session.post(f"http://127.0.0.1:{self._provider_port}/heal")

    async def callers_done(self) -> list[str]:
        """Have callers ask no more, and hear of all that they asked; what is wrong with how they left."""
        callers = [one.process for one in self.members.values() if one.role == "caller"]
        for caller in callers:
            caller.send(signal.SIGTERM)
        codes = await asyncio.gather(*(caller.wait() for caller in callers))
        pairs = zip(callers, codes, strict=True)
        return [f"{caller.name} left with {code}; see {caller.log}" for caller, code in pairs if code != 0]

    async def stop(self) -> None:
        """Kill whoever still runs."""
        for process in [*self.everybody.values(), *([self.provider] if self.provider else [])]:
            if process.alive:
                process.thaw()
                await process.kill()
        for proxy in self.proxies:
            await proxy.close()
        if self.bouncer is not None:
            await asyncio.to_thread(self.bouncer.stop)

    def _named(self, role: str) -> str:
        self._numbers[role] += 1
        return f"{role[0]}{self._numbers[role]}"

    def _way(self, name: str) -> Way:
        """Drawn from the seed and the name."""
        die = random.Random(f"{self.seed} way of {name}")
        kinds = ["direct", *(f"proxy {number}" for number in range(len(self.proxies)))]
        kind = die.choice([*kinds, "pooler"] if self.bouncer is not None else kinds)
        self._ways[kind].add(name)
        if kind.startswith("proxy"):
            proxy = self.proxies[int(kind.removeprefix("proxy "))]
            return Way(kind, self.server.url(self.database, proxy.port))
        if kind == "pooler":
            assert self.bouncer is not None
            # without a URL to listen on it must notice that nothing arrives, and poll
            return Way(
                kind, self.bouncer.url("postgres", self.database), self.url if die.random() < 0.7 else None
            )
        return Way(kind, self.url)

    def _clock(self, name: str) -> Clock | None:
        """Every third process has a clock that may jump, where libfaketime is there."""
        if library() is None or random.Random(f"{self.seed} clock of {name}").random() > 0.34:
            return None
        return Clock(self.path / f"{name}.clock")

    async def _start(
        self, name: str, command: Sequence[object], environment: dict[str, str], clock: Clock | None
    ) -> Process:
        """Start it until it comes up, as whoever looks after processes does."""
        environment = environment | (clock.environment() if clock is not None else {})
        for start in range(_STARTS):
            try:
                process = await Process.start(name, command, self.path / f"{name}.log", environment)
            except RuntimeError:
                if start == _STARTS - 1:
                    raise
            else:
                break
        self.everybody[name] = process
        return process
