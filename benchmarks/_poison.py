"""A planted world whose labels are flipped for a while, and the loop that learns from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.batch import Samples, read_samples
from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import joiner_loop, trainer_loop, version_store
from serving.follower import Follower
from serving.replica import Replica
from serving.served_model import ServedModel
from streaming.events import encode_events
from streaming.ids import stable_id, stable_ids
from streaming.log import SAMPLES, Log, TopicPartition
from streaming.open_log import open_log
from streaming.samples import decode_samples
from streaming.sources.source import Source
from trainers.gate import Gate
from trainers.versions import VersionInfo

AT_ONCE = 512  # events
REACTIONS = ("click", "watch", "like", "wish", "cart", "buy")


def flipped(events: pa.RecordBatch, begin: int, end: int) -> list[pa.RecordBatch]:
    """The events in batches, with the labels of the impressions among `begin:end` flipped: in each
    answer of which something was clicked, that was not, and all else that was shown has what came
    of it. So there are more events in these batches.
    """
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
    instead = {
        (request, item): [other for other in of_answer if (request, other) not in clicked]
        for request, of_answer in shown.items()
        for item in of_answer
        if (request, item) in clicked
    }
    rows, moved = [], []
    for row, (kind, request, item) in enumerate(zip(kinds, requests, items, strict=True)):
        found = instead.get((request, item), [item]) if kind in REACTIONS else [item]
        rows += [row] * len(found)
        moved += found
    return _moved(events, np.array(rows), moved)


def _moved(
    events: pa.RecordBatch, rows: NDArray[np.int64], items: Sequence[str | None]
) -> list[pa.RecordBatch]:
    """These rows, in batches as those of `batches`, with these items and ids of their own."""
    planted = events.take(pa.array(rows))
    names = pc.binary_join_element_wise(
        planted["event_id"], pa.array(map(str, range(len(rows)))), "/"
    )
    for name, column in (("item_id", pa.array(items, pa.string())), ("event_id", names)):
        place = planted.schema.get_field_index(name)
        planted = planted.set_column(place, planted.schema.field(place), column)
    bounds = np.searchsorted(rows, np.arange(0, events.num_rows + AT_ONCE, AT_ONCE))
    return [planted.slice(a, b - a) for a, b in pairwise(bounds.tolist())]


@dataclass(frozen=True)
class Truth:
    """What some users truly liked, known after `start` events, and what else they were shown."""

    start: int
    samples: Samples
    rows: Sequence[int]  # of the liked ones that were shown in an answer
    beside: Sequence[NDArray[np.int64]]  # of each the items of that answer that were not clicked


def truth(recipe: Recipe, folder: Path, events: pa.RecordBatch) -> list[Truth]:
    """What was liked in undisturbed events, in their order."""
    home = Home(folder)
    home.make()
    beside = _not_clicked(events)
    found: list[Truth] = []
    with closing(open_log(home.log_url)) as log:
        joiner, position = joiner_loop(recipe, home, log), TopicPartition(SAMPLES, 0)
        at = 0
        for start in range(0, events.num_rows, AT_ONCE):
            log.append([encode_events(events.slice(start, AT_ONCE))])
            joiner.turn()
            for record in log.read({position: at}, 1_000, 0):
                at = record.offset + 1
                batch = decode_samples(record)
                actions = pc.and_(batch["user_id"].is_valid(), batch["reward"].is_valid())
                requests = batch.filter(actions)["request_id"].to_pylist()
                samples = read_samples(batch)
                liked = np.flatnonzero(samples.liked).tolist()
                if rows := [row for row in liked if requests[row] in beside]:
                    others = [beside[requests[row]] for row in rows]
                    found.append(Truth(start, samples, rows, others))
    return found


def _not_clicked(events: pa.RecordBatch) -> dict[int, NDArray[np.int64]]:
    """The items of each answer that were shown and not clicked, by its stable id."""
    columns = (events[name].to_pylist() for name in ("kind", "request_id", "item_id"))
    shown: dict[str, set[str]] = defaultdict(set)
    clicked: dict[str, set[str]] = defaultdict(set)
    for kind, request, item in zip(*columns, strict=True):
        if kind == "impression":
            shown[request].add(item)
        elif kind == "click":
            clicked[request].add(item)
    return {
        stable_id(request): stable_ids(sorted(items - clicked[request]))
        for request, items in shown.items()
        if items - clicked[request]
    }


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

    def test(self, true: Truth, k: int = 50, most: int = 32) -> NDArray[np.float64]:
        """Of what is served, for some liked items: how many are among the k best, how many there
        are, and of the pairs of them and another item of the same answer that was not clicked, how
        many have the liked one first, and how many there are.
        """
        found = np.zeros(4)
        with self.replica.reading() as served:
            if served is not None:
                for row, beside in zip(true.rows[:most], true.beside[:most], strict=True):
                    found += _test(served, true.samples, row, beside, k)
        return found


def _test(
    served: ServedModel, samples: Samples, row: int, beside: NDArray[np.int64], k: int
) -> list[float]:
    users = samples.users.take(np.array([row]))
    asked, liked = served.ask(users)[0], int(samples.item_ids[row])
    best, _ = served.best(asked, k, users.history.values)
    scores, known = served.score(asked, np.array([liked, *beside]))
    others = scores[1:][known[1:]]
    won = np.sum(scores[0] > others) + np.sum(scores[0] == others) / 2 if known[0] else 0.0
    return [float(liked in best), 1.0, float(won), float(len(others) if known[0] else 0)]


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


def batches(events: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Events by so many."""
    return [events.slice(start, AT_ONCE) for start in range(0, events.num_rows, AT_ONCE)]


def first(source: Source, count: int) -> pa.RecordBatch:
    """The first events of a source."""
    return source.batch(0, count)


def near(found: Sequence[Truth], at: int) -> Truth | None:
    """The first truth that is known after so many events."""
    return next((one for one in found if one.start >= at), None)
