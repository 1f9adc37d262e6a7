"""Requests at Poisson times over kept connections, and how long each answer took from its time on.

A request that waits for a free connection waits on the clock: a slow server cannot slow down those
who ask it (Tene's "coordinated omission").
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_IDLE_S = 3.0  # servers close a connection on which nothing was asked for five


@dataclass
class Told:
    """What came of the requests: `took_ms` of each that was answered with 200."""

    took_ms: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)  # a status, or the name of an error
    bytes: int = 0

    @property
    def failed(self) -> int:
        """Requests that were not answered with 200."""
        return self.outcomes.total() - self.outcomes["200"]

    def at(self, share: float) -> float:
        """The time within which this share of the answers came."""
        ordered = sorted(self.took_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Balancer:
    """Where to send requests: to servers that say that they are ready, in turn."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = list(ports)
        self._ready: set[int] = set()
        self._turn = 0

    def next(self) -> int:
        """The port of the next one; of any, where none is ready."""
        ready = [port for port in self.ports if port in self._ready] or self.ports
        self._turn += 1
        return ready[self._turn % len(ready)]

    async def watch(self, period_s: float = 0.25) -> None:
        """Asks every server again and again whether it is ready."""
        while True:
            for port in list(self.ports):
                try:
                    status, _ = await asyncio.wait_for(_once(port, "/readyz"), 2)
                except (OSError, EOFError, TimeoutError):
                    status = 0
                (self._ready.add if status == 200 else self._ready.discard)(port)
            await asyncio.sleep(period_s)


async def load(
    balancer: Balancer,
    path: Callable[[int], str],
    rate: float,
    count: int,
    connections: int = 64,
) -> Told:
    """Sends `count` requests at `rate` a second; rate 0 is as fast as the connections allow."""
    told = Told()
    free: dict[int, list[_Connection]] = {}
    slots = asyncio.Semaphore(connections)
    rng = random.Random(0)  # noqa: S311 - arrivals, no secrets

    async def ask(number: int, due: float) -> None:
        try:
            port = balancer.next()
            async with _connection(free.setdefault(port, []), port) as connection:
                status, size = await asyncio.wait_for(connection.get(path(number)), 30)
            told.outcomes[str(status)] += 1
            told.bytes += size
            if status == 200:
                told.took_ms.append(1e3 * (time.perf_counter() - due))
        except (OSError, EOFError, TimeoutError) as error:
            told.outcomes[type(error).__name__] += 1
        finally:
            slots.release()

    watching = asyncio.create_task(balancer.watch())
    await asyncio.sleep(0.3)
    due = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            if rate:
                due += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await slots.acquire()
            group.create_task(ask(number, due if rate else time.perf_counter()))
    watching.cancel()
    for connections_of in free.values():
        for connection in connections_of:
            connection.close()
    return told


class _Connection:
    """One kept connection: just as much HTTP as this service speaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._used = time.monotonic()
        self._last = False  # the server said that it closes it

    @property
    def is_good(self) -> bool:
        """Whether the server will take another request on it."""
        return not self._last and time.monotonic() - self._used < _IDLE_S

    async def get(self, path: str) -> tuple[int, int]:
        """Status and size of the answer."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: headrace\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines)
        }
        size = int(headers[b"content-length"])
        await self._reader.readexactly(size)
        self._used, self._last = time.monotonic(), headers.get(b"connection") == b"close"
        return int(status.split(b" ", 2)[1]), len(head) + size

    def close(self) -> None:
        self._writer.close()


async def _open(port: int) -> _Connection:
    return _Connection(*await asyncio.open_connection("127.0.0.1", port))


@asynccontextmanager
async def _connection(free: list[_Connection], port: int) -> AsyncIterator[_Connection]:
    """A connection that is kept as long as the server keeps it."""
    while free and not free[-1].is_good:
        free.pop().close()
    connection = free.pop() if free else await _open(port)
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    free.append(connection)


async def _once(port: int, path: str) -> tuple[int, int]:
    connection = await _open(port)
    try:
        return await connection.get(path)
    finally:
        connection.close()
