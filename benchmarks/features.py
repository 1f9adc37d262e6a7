"""How many events a second do the features take in, on one core?

Each statistic is given batches of 8,192 events: actions of a Zipf-like choice among 100,000 items,
impressions at 20 positions, users in three demographic cells, items of ten fields. Rates are the
median over batches of events per second of processor time, on one thread, warmed up: with all keys
known and tables full where they are bounded. `hot_lists_ms` is the time to make all hot lists anew
from a million pairs of a cell and an item, `hot_list_us` that to read one. The aggregator takes
Arrow records of 4,096 events (impressions and what came of them, as `headrace bench joiner` makes
them) through all it does but Feast: decoding, checks, repeats, histories, statistics, the rows to
push.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time

import numpy as np

from benchmarks.joiner import RECORD, RECORDS_A_TURN, Stream
from features.aggregator import Aggregator, AggregatorConfig
from features.behaviour import BehaviourConfig
from features.coec import Coec, CoecConfig, CountedBaseline, CountedConfig, Shown
from features.decayed import US, DecayedSums, Ids
from features.mutual_information import MutualInformation
from features.popularity import Popularity, PopularityConfig
from features.rates import RateConfig, SmoothedRates
from features.statistics import ItemStatistics
from streaming.event_columns import NONE, Actions
from streaming.events import EventRules

BATCH = 8_192
WARM_UP, TIMED = 30, 60  # batches
ITEMS = 100_000
PAIRS = 1_000_000
CELLS = 500
FIELDS = 10
UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "aggregator_events_per_s": (100e3, UNBOUNDED),
    "decayed_events_per_s": (2e6, UNBOUNDED),
    "item_statistics_actions_per_s": (1e6, UNBOUNDED),
    "popularity_actions_per_s": (300e3, UNBOUNDED),
    "rates_events_per_s": (1e6, UNBOUNDED),
    "coec_impressions_per_s": (300e3, UNBOUNDED),
    "mutual_information_items_per_s": (300e3, UNBOUNDED),
    "hot_list_us": (0.0, 50.0),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Figures by name, telling `report` each as it comes."""
    figures: dict[str, float] = {}
    for name, measure in (
        ("decayed_events_per_s", _decayed),
        ("decayed_new_keys_per_s", _new_keys),
        ("item_statistics_actions_per_s", _item_statistics),
        ("popularity_actions_per_s", _popularity),
        ("rates_events_per_s", _rates),
        ("coec_impressions_per_s", _coec),
        ("mutual_information_items_per_s", _mutual_information),
        ("aggregator_events_per_s", _aggregator),
    ):
        figures[name] = measure()
        report(f"{name} {figures[name]:,.0f}")
    figures |= _hot_lists()
    report(f"hot lists: {figures['hot_lists_ms']:.0f} ms to make, {figures['hot_list_us']:.1f} µs"
           " to read one")  # fmt: skip
    return figures


class Events:
    """Endless batches of actions and impressions, a millisecond apart."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._begun = 0
        self.next()

    def next(self) -> None:
        """The next batch in place of this one."""
        random = self._random
        self.at_us = np.arange(self._begun, self._begun + BATCH) * 1_000
        self._begun += BATCH
        self.items = (ITEMS * random.random(BATCH) ** 3).astype(np.int64)
        self.cells = random.integers(1, CELLS, (BATCH, 3))
        self.positions = random.integers(20, size=BATCH)
        self.clicked = (random.random(BATCH) < 0.05).astype(np.float64)


def rate(step: Callable[[Events], None]) -> float:
    """Events a second of processor time that `step` takes in."""
    events, rates = Events(), []
    for batch in range(WARM_UP + TIMED):
        events.next()
        begun = process_time()
        step(events)
        if batch >= WARM_UP:
            rates.append(BATCH / (process_time() - begun))
    return median(rates)


def _decayed() -> float:
    sums = DecayedSums({"hour": 3_600.0 * US, "day": 86_400.0 * US}, 1_000_000)
    ones = np.ones((BATCH, 2))
    return rate(lambda events: sums.add(events.items, events.at_us, ones))


def _new_keys() -> float:
    """Every key is new, and the table is full."""
    sums = DecayedSums({"hour": 3_600.0 * US, "day": 86_400.0 * US}, 100_000)
    ones = np.ones((BATCH, 2))
    return rate(lambda events: sums.add(events.at_us // 1_000, events.at_us, ones))


def _item_statistics() -> float:
    statistics = ItemStatistics()
    rows, rewards = np.arange(BATCH), np.ones(BATCH, np.float32)

    def step(events: Events) -> None:
        statistics.update(Actions(rows, rows, events.items, rewards, events.at_us))

    return rate(step)


def _popularity() -> float:
    popularity = Popularity(PopularityConfig(most=PAIRS))
    ones = np.ones(BATCH)
    return rate(lambda events: popularity.update(events.items, events.at_us, ones, events.cells))


def _rates() -> float:
    rates, ones = SmoothedRates("ctr", RateConfig()), np.ones(BATCH)
    return rate(lambda events: rates.update(events.items, events.at_us, ones, events.clicked))


def _coec() -> float:
    coec = Coec("items", CoecConfig(), CountedBaseline("all", CountedConfig()))
    context, at_random = np.full(BATCH, NONE), np.zeros(BATCH, np.bool_)

    def step(events: Events) -> None:
        coec.update(
            Shown(events.items, events.positions, events.clicked, events.at_us, context, at_random)
        )

    return rate(step)


def _mutual_information() -> float:
    information = MutualInformation([f"field {n}" for n in range(FIELDS)])
    values: Ids = np.random.default_rng(0).integers(1 << 62, size=(BATCH, FIELDS))
    return rate(lambda _: information.update(values))


def _aggregator() -> float:
    aggregator = Aggregator(AggregatorConfig(), EventRules(), BehaviourConfig())
    stream, rates = Stream(seed=0), []
    for turn in range(30):
        records = next(stream)
        begun = process_time()
        aggregator.on_batch(records)
        if turn >= 10:
            rates.append(RECORDS_A_TURN * RECORD / (process_time() - begun))
    return median(rates)


def _hot_lists() -> dict[str, float]:
    popularity = Popularity(PopularityConfig(most=PAIRS))
    random = np.random.default_rng(0)
    for begun in range(0, PAIRS, BATCH):
        items = (ITEMS * random.random(BATCH) ** 3).astype(np.int64)
        at_us = np.full(BATCH, begun * 1_000)
        cells = random.integers(1, CELLS, (BATCH, 1))
        popularity.update(items, at_us, np.ones(BATCH), cells)
    made = []
    for _ in range(5):
        begun_s = process_time()
        popularity.refresh(PAIRS * 1_000)
        made.append(process_time() - begun_s)
    begun_s = process_time()
    for cell in range(10_000):
        popularity.hot.top("day", 50, cell % CELLS)
    return {
        "hot_list_pairs": float(len(popularity)),
        "hot_lists_ms": 1e3 * median(made[1:]),
        "hot_list_us": 1e6 * (process_time() - begun_s) / 10_000,
    }
