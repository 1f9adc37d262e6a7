"""The planted world: how fast its events are made, and its truth asked.

One core, one process, seconds of its own processor time. A stream of 30 days as it is shipped,
and two days of one with 100,000 users and 50,000 items; a read at a place where nothing was read
before; and the relevance of user-item pairs at their own times. Medians of five runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import islice

import numpy as np

from streaming.sources.population import PopulationConfig
from streaming.sources.truth import Truth
from streaming.sources.world import DAY_US, World, WorldConfig

RUNS = 5
PAIRS = 100_000
PROMISES = {
    "events_per_s": (100_000.0, 1e9),
    "large_events_per_s": (100_000.0, 1e9),
    "truth_pairs_per_s": (20_000.0, 1e9),
}
LARGE = WorldConfig(population=PopulationConfig(users=100_000, items=50_000))


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Events and pairs per second, and the milliseconds of a read far away."""
    runs: list[dict[str, float]] = []
    for number in range(RUNS):
        runs.append(_measured())
        report(f"run {number + 1} of {RUNS}: {runs[-1]['events_per_s']:,.0f} events/s")
    return {name: statistics.median(one[name] for one in runs) for name in runs[0]}


def _measured() -> dict[str, float]:
    world = World()
    small, large = _rate(world, 30), _rate(World(LARGE), 2)
    total = world.total
    begun = time.process_time()
    world.batch(total // 2, 1_000)
    far_ms = (time.process_time() - begun) * 1e3
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 2_000, (2, PAIRS))
    at = world.start_us + rng.integers(0, 30 * DAY_US, PAIRS)
    begun = time.process_time()
    Truth(world).relevance(users, items, "home", at)
    pairs = PAIRS / (time.process_time() - begun)
    return {
        "events_per_s": small,
        "large_events_per_s": large,
        "far_read_ms": far_ms,
        "truth_pairs_per_s": pairs,
    }


def _rate(world: World, days: int) -> float:
    begun = time.process_time()
    blocks = islice(world.batches(), days * world.blocks_a_day)
    count = sum(int(batch.num_rows) for batch in blocks)
    return count / (time.process_time() - begun)
