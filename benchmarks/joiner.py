"""How fast does the joiner join, and what does an open impression cost?

A stream of requests, each ten impressions of one user and then what came of them (clicks on one
in twelve, a few of those followed by a cart and a purchase), goes through `Joiner.on_batch` as
Arrow records of 4,096 events: decoded, checked, rid of repeats, hashed, joined with the histories
of 200,000 users, and encoded as samples. One process, one thread, no log: what is measured is what
the Step itself costs. Windows are set so that 1,000,000 impressions are open while it is timed, and
the clock starts when as many close as open.
The ratio of the last tenth to the first of a stream ten times as long tells whether the cost
of an event grows with the length of the stream. The memory of an open impression is what the pools,
maps and queues take, as allocated, over how many are open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks._plot import line_plot
from features.behaviour import Behaviour, BehaviourConfig
from streaming.arrow_record import filled_columns
from streaming.events import EVENT_SCHEMA, EventRules, encode_events
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, Record

OPEN = 1_000_000
PER_REQUEST = 10
USERS = 200_000
ITEMS = 100_000
RECORD = 4_096
RECORDS_A_TURN = 8
EVENT_US = 500  # of event time between two impressions
HISTORY = 50  # actions that are kept of a user, and travel with a sample
START_US = 1_700_000_000_000_000
WARM_UP = 3_000_000  # until the longest window has ended for the first time
TIMED = 1_000_000
ROUNDS = 5
PICTURE = Path(__file__).parents[1] / "docs" / "joiner.svg"

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "events_per_s": (200e3, UNBOUNDED),
    "open_impressions": (OPEN, UNBOUNDED),
    "last_over_first_tenth": (0.0, 1.25),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Measure every figure, telling `report` what comes out as it comes."""
    stream = Stream(seed=0)
    joiner = new_joiner()
    report("opening a million impressions ...")
    for _ in range(WARM_UP // (RECORDS_A_TURN * RECORD)):
        joiner.on_batch(next(stream))
    figures: dict[str, float] = {}
    report(f"{len(joiner._impressions):,} are open after {WARM_UP:,} events")

    tenths = [turn_rates(joiner, stream, TIMED) for _ in range(10)]
    rates = [median(tenth) for tenth in tenths]
    figures["events_per_s"] = median(rates[:ROUNDS])
    figures["events_per_s_slowest_tenth"] = min(rates)
    figures["last_over_first_tenth"] = rates[0] / rates[-1]
    figures["open_impressions"] = len(joiner._impressions)
    report(f"{figures['events_per_s']:,.0f} events/s; cost of the last tenth of 10 M events over"
           f" the first: {figures['last_over_first_tenth']:.2f}")  # fmt: skip
    line_plot(
        PICTURE,
        "The joiner: cost of an event over a stream ten times as long",
        ("events (millions), 1 million impressions open", "µs an event"),
        [TIMED / 1e6 * (n + 1) for n in range(10)],
        {"joiner": [1e6 / rate for rate in rates]},
    )

    figures["bytes_per_open_impression"] = joiner._impressions.nbytes / len(joiner._impressions)
    begun = time.perf_counter()
    tables = joiner.snapshot().shards
    figures["snapshot_s"] = time.perf_counter() - begun
    figures["snapshot_bytes_per_open_impression"] = sum(
        table.nbytes for name, table in tables.items() if name.startswith("impressions")
    ) / len(joiner._impressions)
    report(f"{figures['bytes_per_open_impression']:.0f} bytes an open impression")
    return figures


def new_joiner() -> Joiner:
    """A joiner that keeps what it showed for ten minutes and the clicked for an hour."""
    labels = {
        "click": Label(600.0),
        "cart": Label(1_200.0, after="click"),
        "buy": Label(1_200.0, after="click"),
    }
    impressions = ImpressionsConfig(labels, remember_s=0.0)
    config = JoinerConfig(history=HISTORY, impressions=impressions)
    return Joiner(config, EventRules(), Behaviour(BehaviourConfig(length=HISTORY)))


def turn_rates(joiner: Joiner, stream: Iterator[list[Record]], events: int) -> list[float]:
    """Events per second of processor time for each turn; a shared machine takes only wall time."""
    rates = []
    for _ in range(events // (RECORDS_A_TURN * RECORD)):
        records = next(stream)
        begun = time.process_time()
        joiner.on_batch(records)
        rates.append(RECORDS_A_TURN * RECORD / (time.process_time() - begun))
    return rates


class Stream:
    """Endless turns of records. Requests follow one another; feedback comes 1 to 60 s later."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._requests = 0
        self._events = 0
        self._later = _Block.empty()  # feedback whose time has not come

    def __iter__(self) -> Iterator[list[Record]]:
        return self

    def __next__(self) -> list[Record]:
        size = RECORDS_A_TURN * RECORD
        block = self._later
        while len(block.at_us) < 2 * size:
            block = block.followed_by(self._requests_block(4_000))
        block = block.taken(np.argsort(block.at_us, kind="stable"))
        self._later = block.taken(slice(size, None))
        batch = block.taken(slice(0, size)).batch(self._events)
        first, self._events = self._events, self._events + size
        return [
            Record(EVENTS, 0, first // RECORD + n, None,
                   encode_events(batch.slice(n * RECORD, RECORD)).value, batch["at"][-1].value)
            for n in range(RECORDS_A_TURN)
        ]  # fmt: skip

    def _requests_block(self, requests: int) -> _Block:
        random = self._random
        number = np.repeat(np.arange(self._requests, self._requests + requests), PER_REQUEST)
        self._requests += requests
        shown = _Block(
            START_US + number * PER_REQUEST * EVENT_US,
            np.zeros(len(number), np.int64),
            np.repeat(random.integers(USERS, size=requests), PER_REQUEST),
            (ITEMS * random.random(len(number)) ** 3).astype(np.int64),
            number,
            np.tile(np.arange(PER_REQUEST), requests),
        )
        block = shown
        for kind, share in ((1, 1 / 12), (2, 1 / 10), (3, 1 / 3)):  # click, cart, buy
            shown = shown.taken(random.random(len(shown.at_us)) < share)
            shown = shown.later(kind, random.integers(1_000_000, 60_000_000, len(shown.at_us)))
            block = block.followed_by(shown)
        return block


class _Block:
    """Events in numbers, in any order."""

    kinds = pa.array(["impression", "click", "cart", "buy"])

    def __init__(self, *columns: Any) -> None:
        self.columns = columns
        self.at_us, self.kind, self.user, self.item, self.request, self.position = columns

    @staticmethod
    def empty() -> _Block:
        return _Block(*(np.empty(0, np.int64) for _ in range(6)))

    def taken(self, rows: Any) -> _Block:
        return _Block(*(column[rows] for column in self.columns))

    def followed_by(self, other: _Block) -> _Block:
        pairs = zip(self.columns, other.columns, strict=True)
        return _Block(*(np.concatenate(pair) for pair in pairs))

    def later(self, kind: int, by_us: Any) -> _Block:
        columns = (self.user, self.item, self.request, self.position)
        return _Block(self.at_us + by_us, np.full(len(by_us), kind), *columns)

    def batch(self, first: int) -> pa.RecordBatch:
        def named(numbers: Any) -> pa.Array:
            return pa.array(numbers).cast(pa.string())

        rows = len(self.at_us)
        given = {
            "event_id": named(np.arange(first, first + rows)),
            "kind": self.kinds.take(pa.array(self.kind)),
            "at": pa.array(self.at_us),
            "user_id": named(self.user),
            "item_id": named(self.item),
            "request_id": named(self.request),
            "position": pa.array(self.position),
            "scenario": pa.repeat("home", rows),
        }
        return pa.RecordBatch.from_arrays(
            filled_columns(EVENT_SCHEMA, rows, given), schema=EVENT_SCHEMA
        )
