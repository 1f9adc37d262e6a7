"""Answers while versions come: how long they take, and whether any request ever fails.

100,000 items, 20,000 users with histories, one `headrace serve` in a process of its own, and a
publisher that brings a delta of 10,000 rows every 250 ms (each row also a vector in the index), and
one of the ranker. All that belongs to an answer is on: features from the store, all sources,
filters for what is not available, impressions back to the log. Requests come at Poisson times, 200
a second, over kept connections, and the clock of each starts at its time, not when a connection is
free. The figures are the medians of three rounds. Between them are rounds in which 500 candidates
of every answer go through the ranker, at 100 a second (`ranked`): two cores do not rank twice that.

Then ten times as many for five seconds: what cannot be answered is shed (429), so that the rest
need not wait for it.

Then 100,000 requests, every other one ranked, as fast as eight connections get their answers, from
two replicas, while the versions go on, a snapshot of another lineage makes both load everything
anew, and each replica is replaced by a new process (rolling restart). The client sends to whoever
says that it is ready, as a load balancer does. None may fail, and at least 100 versions must have
gone by.

All of it shares two cores: the replicas, the publisher and the client, each a process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._load import Balancer, Told, load
from benchmarks._service import Service, replica
from benchmarks._shop import Shop

Report = Callable[[str], None]
ITEMS, USERS = 100_000, 20_000
RATE, RANKED_RATE, SECONDS, ROUNDS = 200.0, 100.0, 20, 3
STORM = 10 * RATE
DELTA_ROWS, EVERY_S = 10_000, 0.25
REQUESTS, CONNECTIONS = 100_000, 8
_UNRANKED = "unranked"
_RECIPE = {f"recommend.scenarios.{_UNRANKED}.ranker": "none"}

PROMISES = {
    "answer_ms_p50": (0.0, 5.0),
    "answer_ms_p99": (0.0, 20.0),
    "answers_ranked": (1.0, 1.0),  # or it was measured without
    "failed": (0.0, 0.0),
    "failed_at_a_rate": (0.0, 0.0),
    "ranked_failed_at_a_rate": (0.0, 0.0),
    "storm_neither_answered_nor_shed": (0.0, 0.0),
    "versions_meanwhile": (100.0, float("inf")),
}


def run(report: Report) -> dict[str, float]:
    """Latency at a rate, then failures through everything that happens to replicas."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        report(f"a shop of {ITEMS:,} items and {USERS:,} users ...")
        publisher = stack.enter_context(Publisher(home).running())
        first = stack.enter_context(replica(home, "--drain-s", "1"))
        first.wait_until_ready()

        quiet = asyncio.run(load(Balancer([first.port]), _either, RATE, int(RATE * 5)))  # warm up
        report(f"warm: p50 {quiet.at(0.5):.2f} ms")
        figures["answers_ranked"] = float(_asks_a_ranker(first))
        rounds: dict[str, list[Told]] = {"": [], "ranked_": []}
        for _ in range(ROUNDS):
            for name, path, rate in (("", _unranked, RATE), ("ranked_", _ranked, RANKED_RATE)):
                told = asyncio.run(load(Balancer([first.port]), path, rate, int(rate * SECONDS)))
                report(f"{name}{told.outcomes.total():,} at {rate:g}/s: p50 {told.at(0.5):.2f} ms,"
                       f" p99 {told.at(0.99):.2f} ms, {dict(told.outcomes)}")  # fmt: skip
                rounds[name].append(told)
        for name, each in rounds.items():
            figures |= {
                f"{name}answer_ms_p50": median(told.at(0.5) for told in each),
                f"{name}answer_ms_p99": median(told.at(0.99) for told in each),
                f"{name}answer_ms_max": max(max(told.took_ms) for told in each),
                f"{name}failed_at_a_rate": sum(told.failed for told in each),
            }
        storm = asyncio.run(load(Balancer([first.port]), _unranked, STORM, int(STORM * 5), 256))
        figures |= {
            "storm_answered_a_second": storm.outcomes["200"] / 5,
            "storm_answer_ms_p50": storm.at(0.5),
            "storm_answer_ms_p99": storm.at(0.99),
            "storm_neither_answered_nor_shed": storm.failed - storm.outcomes["429"],
        }
        report(f"{STORM:g}/s: {dict(storm.outcomes)}, p50 of the answered {storm.at(0.5):.2f} ms")
        begun = publisher.versions
        told = _through_everything(home, first, publisher, stack, report)
        figures |= {
            "requests": told.outcomes.total(),
            "failed": told.failed,
            "versions_meanwhile": publisher.versions - begun,
            "busy_answer_ms_p50": told.at(0.5),
            "busy_answer_ms_p99": told.at(0.99),
        }
        report(f"outcomes {dict(told.outcomes)} through {figures['versions_meanwhile']} versions")
    return figures


class Publisher:
    """Stocks a shop, and brings versions to it until the end of the block.

    A process of its own, as a trainer is: in that of the client it would hold up the client's
    clock.
    """

    def __init__(self, home: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ready, self._stopping, self._anew = (context.Event() for _ in range(3))
        self._versions = context.Value("q", 0)
        self._process = context.Process(
            target=_publish,
            args=(home, self._ready, self._stopping, self._anew, self._versions),
        )

    @property
    def versions(self) -> int:
        """How many it has brought."""
        return int(self._versions.value)

    def begin_anew(self) -> None:
        """Lets a snapshot of another lineage come next, as after the death of a trainer."""
        self._anew.set()

    @contextmanager
    def running(self) -> Iterator[Publisher]:
        self._process.start()
        try:
            while not self._ready.wait(1):
                if not self._process.is_alive():
                    raise RuntimeError("the publisher has ended: its error stands above")
            yield self
        finally:
            self._stopping.set()
            self._process.join()


def _publish(home: Path, ready: Event, stopping: Event, anew: Event, versions: Any) -> None:
    """The body of the publisher's process."""
    with closing(Shop(home, ITEMS, USERS, _RECIPE)) as shop:
        shop.stock(lambda _: None)
        shop.publish_snapshot()
        ready.set()
        due = time.monotonic()
        while not stopping.wait(max(0.0, due - time.monotonic())):
            if anew.is_set():
                anew.clear()
                shop.publish_snapshot(lineage=f"shop-{versions.value}")
            else:
                shop.publish_delta(DELTA_ROWS, DELTA_ROWS // 10)
            versions.value += 1
            due = max(due + EVERY_S, time.monotonic())


def _through_everything(
    home: Path,
    first: Service,
    publisher: Publisher,
    stack: ExitStack,
    report: Callable[[str], None],
) -> Told:
    """Requests while all that can happen to replicas happens, one after the other."""
    balancer = Balancer([first.port])

    def start() -> Service:
        new = stack.enter_context(replica(home, "--drain-s", "1"))
        new.wait_until_ready()
        balancer.ports.append(new.port)
        return new

    def stop(old: Service) -> None:
        old.stop(timeout_s=120)
        balancer.ports.remove(old.port)

    def happen() -> None:
        second = start()
        report("a second replica answers")
        publisher.begin_anew()
        for old in (first, second):
            start()
            stop(old)
            report("a replica was replaced")
        publisher.begin_anew()

    happening = threading.Thread(target=happen)
    happening.start()
    told = asyncio.run(load(balancer, _either, 0.0, REQUESTS, CONNECTIONS))
    happening.join()
    return told


def _ranked(number: int) -> str:
    user = number * 7_919 % USERS
    return f"/v1/recommend?user_id=u{user}&k=10"


def _unranked(number: int) -> str:
    return f"{_ranked(number)}&scenario={_UNRANKED}"


def _either(number: int) -> str:
    return (_ranked, _unranked)[number % 2](number)


def _asks_a_ranker(served: Service) -> bool:
    """Whether those answers have a ranker's predictions, and those of the scenario have none."""
    ranked, plain = (served.get(f"{path(1)}&explain=true") for path in (_ranked, _unranked))
    return ranked["ranker"] is not None and plain["ranker"] is None
