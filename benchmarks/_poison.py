"""A planted world whose labels are flipped for a while, and the loop that learns from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.batch import Samples, read_samples
from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import joiner_loop, trainer_loop, version_store
from serving.follower import Follower
from serving.replica import Replica
from serving.served_model import ServedModel
from streaming.events import encode_events
from streaming.log import SAMPLES, Log, TopicPartition
from streaming.open_log import open_log
from streaming.samples import decode_samples
from streaming.sources.source import Source
from trainers.gate import Gate
from trainers.versions import VersionInfo

AT_ONCE = 512  # events
REACTIONS = ("click", "watch", "like", "wish", "cart", "buy")


def flipped(events: pa.RecordBatch, begin: int, end: int, seed: int = 0) -> pa.RecordBatch:
    """The events with the labels of the impressions among `begin:end` exchanged: in each answer
    what was clicked was not, and something else that was shown has all that came of it.
    """
    rng = np.random.default_rng(seed)
    kinds, items = events["kind"].to_pylist(), events["item_id"].to_pylist()
    requests = events["request_id"].to_pylist()
    clicked = {
        (request, item)
        for kind, request, item in zip(kinds, requests, items, strict=True)
        if kind == "click"
    }
    shown: dict[str, list[str]] = defaultdict(list)
    for row in range(begin, end):
        if kinds[row] == "impression":
            shown[requests[row]].append(items[row])
    instead: dict[tuple[str, str], str] = {}
    for request, of_answer in shown.items():
        others = [item for item in of_answer if (request, item) not in clicked]
        rng.shuffle(others)
        for item in of_answer:
            if (request, item) in clicked and others:
                instead[request, item] = others.pop()
    moved = [
        instead.get((request, item), item) if kind in REACTIONS else item
        for kind, request, item in zip(kinds, requests, items, strict=True)
    ]
    column = events.schema.get_field_index("item_id")
    return events.set_column(column, events.schema.field(column), pa.array(moved, pa.string()))


def truth(recipe: Recipe, folder: Path, events: pa.RecordBatch) -> list[tuple[int, Samples]]:
    """The liked samples of undisturbed events, each with the number of events that led to it."""
    home = Home(folder)
    home.make()
    found: list[tuple[int, Samples]] = []
    with closing(open_log(home.log_url)) as log:
        joiner, position = joiner_loop(recipe, home, log), TopicPartition(SAMPLES, 0)
        at = 0
        for start in range(0, events.num_rows, AT_ONCE):
            log.append([encode_events(events.slice(start, AT_ONCE))])
            joiner.turn()
            for record in log.read({position: at}, 1_000, 0):
                at = record.offset + 1
                samples = read_samples(decode_samples(record))
                if samples.liked.any():
                    found.append((start, samples))
    return found


class System:
    """Joiner, trainer, gate and a replica in one thread, event by event in the same order."""

    def __init__(self, recipe: Recipe, folder: Path, log: Log) -> None:
        home = Home(folder)
        self._log = log
        self._joiner = joiner_loop(recipe, home, log)
        self._trainer = trainer_loop(recipe, home, log)
        self.replica = Replica(recipe.replica)
        self.announced: list[VersionInfo] = []
        self._follower = Follower(
            log,
            version_store(recipe, home),
            self.replica,
            look_back=1_000,
            noted=self.announced.append,
        )

    def feed(self, events: pa.RecordBatch, *, follows: bool = True) -> None:
        """Learns events, publishes, and lets the replica follow, unless it is to stay as it is."""
        self._log.append([encode_events(events)])
        self._joiner.turn()
        learns = True
        while learns:
            learns = bool(self._trainer.turn())
            if follows:
                self._follower.turn(timeout_s=0)

    @property
    def gate(self) -> Gate:
        gate: Gate = self._trainer.step.gate
        return gate

    def recall(self, samples: Samples, k: int = 50, most: int = 32) -> tuple[int, int]:
        """Of so many liked samples, how many have their item among the k best of what is served,
        and how many there were.
        """
        rows = np.flatnonzero(samples.liked)[:most]
        with self.replica.reading() as served:
            if served is None:
                return 0, 0
            return sum(_is_found(served, samples, row, k) for row in rows), len(rows)


def _is_found(served: ServedModel, samples: Samples, row: Any, k: int) -> bool:
    users = samples.users.take(np.array([row]))
    best, _ = served.best(served.ask(users)[0], k, users.history.values)
    return bool(samples.item_ids[row] in best)


@contextmanager
def system(recipe: Recipe, folder: Path) -> Iterator[System]:
    """A system in a home of its own."""
    home = Home(folder)
    home.make()
    with closing(open_log(home.log_url)) as log:
        yield System(recipe, folder, log)


def eager(recipe: Recipe, **gate: Any) -> Recipe:
    """The recipe, publishing after every turn, with other settings of the gate."""
    trainer = recipe.trainer
    return replace(
        recipe,
        trainer=replace(trainer, publish_every_s=0.0, gate=replace(trainer.gate, **gate)),
    )


def batches(events: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Events by so many, each with the number of those before."""
    for start in range(0, events.num_rows, AT_ONCE):
        yield start, events.slice(start, AT_ONCE)


def first(source: Source, count: int) -> pa.RecordBatch:
    """The first events of a source."""
    return source.batch(0, count)


def near(found: Sequence[tuple[int, Samples]], at: int) -> Samples | None:
    """The first liked samples that come of events from there on."""
    return next((samples for start, samples in found if start >= at), None)
