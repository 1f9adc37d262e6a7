"""How old is what the feature store answers, at 5,000 events a second?

A producer in a process of its own appends 5,000 events/s to an embedded log, 100 in a record every
20 ms, and the aggregator's loop (`headrace run` has it in an actor) takes them into Feast's online
store in SQLite, with cuts and the offline store as they are by default. There are 20,000 users,
whose histories of 100 actions are full from the start. `mixed`: of 100 events 90 are impressions of
10,000 items at 20 positions, and 10 are clicks. `actions`: every event is a click of somebody, the
dearest case, for each pushes a whole history. An age is that of the oldest event of a push, from
its arrival in the log until the push is done; the p99 is over all pushes of 30 seconds, after ten
seconds of warming up. `left_behind_s` is how long the loop needs for what is left when the producer
ends.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.aggregator import Aggregator
from infra.home import Home
from infra.recipe import Recipe, load_recipe
from streaming.arrow_record import filled_columns
from streaming.artefact import Artefact
from streaming.errors import ConfigError
from streaming.events import EVENT_SCHEMA, encode_events
from streaming.file_log import FileLog
from streaming.ids import stable_id
from streaming.log import EVENTS, Record
from streaming.loop import Loop

EVENTS_PER_S = 5_000
RECORD = 100
USERS, ITEMS, LENGTH = 20_000, 10_000, 100
CLICKS = {"mixed": 10, "actions": RECORD}  # of a record
WARM_UP_S, TIMED_S = 10, 30
NOW_US = 1_700_000_000_000_000  # when the histories that are full from the start were logged
UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "mixed_age_p99_ms": (0.0, 300.0),
    "mixed_left_behind_s": (0.0, 1.0),
    "mixed_events_per_s": (0.98 * EVENTS_PER_S, UNBOUNDED),
    "actions_events_per_s": (0.95 * EVENTS_PER_S, UNBOUNDED),
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Figures by name, telling `report` each as it comes."""
    figures: dict[str, float] = {}
    for name, clicks in CLICKS.items():
        found = _measure(clicks)
        report(f"{name}: " + ", ".join(f"{what} {value:,.1f}" for what, value in found.items()))
        figures |= {f"{name}_{what}": value for what, value in found.items()}
    return figures


def _measure(clicks: int) -> dict[str, float]:
    from features.store import FeastStore

    recipe = load_recipe("movielens")
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        home.make()
        log = FileLog(home.path / "log.db")
        store = FeastStore(home.features, recipe.features)
        store.apply()
        ages: list[tuple[float, float]] = []

        def push(pushes: Any) -> list[Any]:
            done = store.push(pushes)
            now = time.time()
            ages.extend((now, now - p.logged_us / 1e6) for p in pushes)
            return done

        loop = Loop(
            log,
            "aggregator",
            [EVENTS],
            lambda state: _filled(recipe, state),
            home.cuts("aggregator"),
            execute=push,
            redo=store.push_again,
            flush=store.flush,
            config=replace(recipe.loop, background=True),
        )
        spawn = multiprocessing.get_context("spawn")
        producer = spawn.Process(target=_produce, args=(home.path / "log.db", clicks))
        stopping = threading.Event()
        watching = threading.Thread(target=_stop_when_done, args=(producer, log, loop, stopping))
        began = time.time()
        used = time.process_time()
        producer.start()
        watching.start()
        loop.run(stopping)
        used = time.process_time() - used
        watching.join()
        ended = ages[-1][0]
        log.close()
    first = ages[0][0]
    timed = np.array([age for at, age in ages if at >= first + WARM_UP_S]) * 1e3
    seconds = WARM_UP_S + TIMED_S
    return {
        "age_p50_ms": float(np.percentile(timed, 50)),
        "age_p99_ms": float(np.percentile(timed, 99)),
        "age_max_ms": float(timed.max()),
        "left_behind_s": max(0.0, ended - first - seconds),
        "events_per_s": EVENTS_PER_S * seconds / (ended - first),
        "cores": used / (ended - began),
    }


def _filled(recipe: Recipe, state: Artefact | None) -> Aggregator:
    step = Aggregator(recipe.aggregator, recipe.events, recipe.behaviour, state)
    rng = np.random.default_rng(0)
    for n in range(LENGTH):
        batch = _batch(rng, np.arange(USERS), USERS, n * USERS, NOW_US - (LENGTH - n) * USERS)
        step.on_batch([Record(EVENTS, 0, n, None, encode_events(batch).value, NOW_US)])
    lengths = step._users.histories(np.array([stable_id("0")]))[0].actions.offsets
    if lengths[-1] != LENGTH:
        raise ConfigError("the histories are not full: the events of the benchmark were refused")
    return step


def _batch(rng: Any, users: Any, clicks: int, first: int, at_us: int) -> pa.RecordBatch:
    """Events of users, of which so many are clicks, and the others impressions."""
    rows = len(users)
    kinds = np.where(rng.permutation(rows) < clicks, "click", "impression")
    given = {
        "event_id": pa.array(np.arange(first, first + rows)).cast(pa.string()),
        "kind": pa.array(kinds),
        "request_id": pa.array(np.arange(first, first + rows) // 20).cast(pa.string()),
        "position": pa.array(rng.integers(20, size=rows)),
        "at": pa.array(at_us + np.arange(rows)),
        "user_id": pa.array(users).cast(pa.string()),
        "item_id": pa.array((ITEMS * rng.random(rows) ** 3).astype(np.int64)).cast(pa.string()),
        "scenario": pa.repeat("home", rows),
    }
    return pa.RecordBatch.from_arrays(filled_columns(EVENT_SCHEMA, rows, given), EVENT_SCHEMA.names)


def _produce(path: Path, clicks: int) -> None:
    """Appends a record every so often, late ones at once."""
    rng = np.random.default_rng(1)
    log = FileLog(path)
    began = time.time()
    for n in range((WARM_UP_S + TIMED_S) * EVENTS_PER_S // RECORD):
        wait_s = began + n * RECORD / EVENTS_PER_S - time.time()
        if wait_s > 0:
            time.sleep(wait_s)
        users = rng.integers(USERS, size=RECORD)
        batch = _batch(rng, users, clicks, 10_000_000 + n * RECORD, int(time.time() * 1e6))
        log.append([encode_events(batch.cast(EVENT_SCHEMA))])
    log.close()


def _stop_when_done(producer: Any, log: FileLog, loop: Loop[Any], stopping: Any) -> None:
    producer.join()
    while any(loop.positions[place] < end for place, end in log.ends([EVENTS]).items()):
        time.sleep(0.01)
    stopping.set()
