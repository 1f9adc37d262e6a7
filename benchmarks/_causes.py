"""What can be wrong with a running system, done on purpose: for its alerts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks._load import Balancer, load
from benchmarks._service import Service
from features.aggregator import Aggregator
from features.store import FeastStore
from infra.home import Home
from infra.recipe import Recipe, load_recipe
from infra.status import groups, progress
from infra.visitor_service import VisitorService
from infra.wiring import version_store
from streaming.ids import stable_id
from streaming.log import EVENTS, NOBODY, SAMPLES, VERSIONS, Append, Log, Record
from streaming.open_log import open_log
from streaming.samples import decode_samples, encode_samples
from trainers.versions import doorbell

_PAUSE_S, _LOOK_S = 0.2, 0.05
_LEARNT_S = 60.0  # until likes are learnt, on a machine that has much else to do
_ASKED_AT_ONCE = 64
# In turns, for a block of the gate's is 64 users and ends when another comes.
_PEOPLE, _AT_ONCE, _EACH = 96, 64, 3
_TASTES, _OF_A_TASTE = 8, 12  # more items than the 50 that popularity finds
_KNOWN_LIKES = 32  # of each: for some blocks they all are of the gate's last kind, above 20 actions
_KNOWN_BITS = 2.0  # better than by popularity: whoever knows the tastes is at more than three
_HELD_UP_S = 1.5  # more than the second that is promised


class Planting:
    """Does again and again what is wrong, or stops processes, until the end of the block."""

    def __init__(self) -> None:
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._mended = ExitStack()
        self._errors: list[Exception] = []

    def often(self, act: Callable[[], object]) -> None:
        """Five times a second, if that is not too much."""
        thread = threading.Thread(target=self._repeat, args=(act,))
        self._threads.append(thread)
        thread.start()

    def stop(self, process: int) -> None:
        """The process stands still, as one that waits for a disk that is gone."""
        os.kill(process, signal.SIGSTOP)
        self._mended.callback(os.kill, process, signal.SIGCONT)

    def take_away(self, folder: Path) -> None:
        """It is not there, as on a disk that is gone."""
        aside = folder.with_name(f"{folder.name}.away")
        folder.rename(aside)
        self._mended.callback(aside.rename, folder)

    def pin(self, causes: Causes) -> None:
        """Replicas stay at the version that answers, as somebody tells them to."""
        causes.pin(causes.running.get("/v1/status")["served_version"])
        self._mended.callback(causes.pin, None)

    def __enter__(self) -> Planting:
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._mended.close()
        for thread in self._threads:
            thread.join(60)
        if self._errors:
            raise self._errors[0]

    def _repeat(self, act: Callable[[], object]) -> None:
        while not self._ending.wait(_PAUSE_S):
            try:
                act()
            except Exception as error:  # noqa: BLE001 - raised at the end of the block
                self._errors.append(error)
                return


@dataclass
class Causes:
    """Of a system that runs in a home, with the recipe of a file."""

    running: Service
    home: Path
    recipe_file: Path
    _liked: int = field(default=0, init=False)  # by many people, and learnt

    @cached_property
    def recipe(self) -> Recipe:
        """What it runs with."""
        return load_recipe(str(self.recipe_file))

    @cached_property
    def visitor(self) -> VisitorService:
        """Asks the run, as a visitor would."""
        return VisitorService(self.running.url, _LEARNT_S)

    def log(self) -> closing[Log]:
        """Its log, closed at the end of the block."""
        return closing(open_log(Home(self.home).log_url))

    def process(self, name: str) -> int:
        """The id of an actor's process, as its log tells."""
        lines = Home(self.home).log_file(name).read_text().splitlines()
        told = [json.loads(line) for line in lines]
        return int([one["pid"] for one in told if f"the {name} is process" in one["event"]][-1])

    def like(self) -> None:
        """Nothing is wrong: a user likes something."""
        self.visitor.post([{"kind": "like", "user_id": "ada", "item_id": "i1"}])

    def likes(self) -> None:
        """Nothing is wrong: some of many people like what is after their taste."""
        self._post_likes(lambda person: self._any_of(self._items[person % _TASTES]))

    def lies(self) -> None:
        """They seem to like what is after anybody's taste but their own, and some what nobody had
        heard of, in a place where nobody ever was.
        """

        def item(person: int) -> str:
            if person % 3 == 0:
                return f"hype-{self._rng.integers(1 << 40)}"
            other = (person + 1 + int(self._rng.integers(_TASTES - 1))) % _TASTES
            return self._any_of(self._items[other])

        self._post_likes(item, scenario="nowhere")

    def newcomers(self) -> None:
        """The world moves on: all like the same few things, which there were not before."""
        self._post_likes(lambda _: f"new-{self._rng.integers(_OF_A_TASTE)}")

    @property
    def tastes_are_known(self) -> bool:
        """Whether the gate has heard enough of them to find that they are others."""
        with self.log() as log:
            figures = json.loads(_newest(log, VERSIONS).value).get("metrics", {})
        often = self._liked >= _PEOPLE * _KNOWN_LIKES
        return often and float(figures.get("gate_gain_before", 0.0)) > _KNOWN_BITS

    @cached_property
    def _items(self) -> list[list[str]]:
        """Of each taste; those that are popular anyway, so that the order of these stays."""
        answer = self.visitor.recommend("a stranger", _TASTES * _OF_A_TASTE)
        items = [item["item_id"] for item in answer["items"]]
        return [items[taste::_TASTES] for taste in range(_TASTES)]

    @cached_property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(0)

    def _any_of(self, items: Sequence[str]) -> str:
        return items[int(self._rng.integers(len(items)))]

    def _post_likes(self, item: Callable[[int], str], **more: str) -> None:
        """The next of them like something, and it is learnt: on a machine that learns slowly what
        is planted next would otherwise wait behind it for minutes.
        """
        first = self._liked // _EACH
        people = [(first + number) % _PEOPLE for number in range(_AT_ONCE) for _ in range(_EACH)]
        self.visitor.post(
            [
                {"kind": "like", "user_id": f"p{person}", "item_id": item(person), **more}
                for person in people
            ]
        )
        due = time.monotonic() + _LEARNT_S
        with self.log() as log:
            while any(progress(log, groups(Home(self.home))).lag.values()):
                if time.monotonic() > due:
                    raise RuntimeError(f"likes are not learnt after {_LEARNT_S:.0f} s")
                time.sleep(_LOOK_S)
        self._liked += len(people)

    def pin(self, version: str | None) -> None:
        """Replicas stay at a version, or with None follow the newest, as by `headrace versions`."""
        model = self.recipe.trainer.called
        version_store(self.recipe, Home(self.home)).pin(model, version)
        with self.log() as log:
            log.append([doorbell(model)])

    def held_up(self) -> None:
        """What is liked is learnt only after a while, for the trainer stands still."""
        trainer = self.process("trainer")
        os.kill(trainer, signal.SIGSTOP)
        try:
            self.like()
            time.sleep(_HELD_UP_S)
        finally:
            os.kill(trainer, signal.SIGCONT)
        time.sleep(_PAUSE_S)

    def damage_features(self, user: str) -> None:
        """What the feature store has of a user cannot be read."""
        store = Home(self.home).features / "online.db"
        with closing(sqlite3.connect(store)) as connection, connection:
            connection.execute(
                "INSERT OR REPLACE INTO headrace_user_history VALUES (?, 0, ?)",
                [stable_id(user), b"\xff"],
            )

    def refused_events(self) -> None:
        """Some events that are none, in partition 0."""
        with self.log() as log:
            log.append([Append(EVENTS, b"no event", partition=0)] * 5)

    def samples_that_are_no_numbers(self) -> None:
        """A micro-batch from which nothing can be learnt."""
        with self.log() as log:
            log.append([_not_a_number(log)])

    def version_that_is_nowhere(self) -> None:
        """A version is announced that nobody has stored."""
        with self.log() as log:
            told = json.loads(_newest(log, VERSIONS).value)
            told |= {"number": told["number"] + 1_000, "base": None}
            log.append([Append(VERSIONS, json.dumps(told).encode(), told["model"].encode())])

    def wrong_features(self) -> None:
        """Users of partition 0 are answered from a history that they never had, and click."""
        with self.log() as log:
            names = (f"skewed-{number}" for number in range(20))
            users = [one for one in names if log.partition_of(EVENTS, one.encode()) == 0]
        recipe = self.recipe
        aggregator = Aggregator(recipe.aggregator, recipe.events, recipe.behaviour)
        store = FeastStore(Home(self.home).features, recipe.features)
        store.push(aggregator.on_batch(_never_happened(users)))
        for user in users:
            answer = self.visitor.recommend(user, 3)
            item = answer["items"][0]["item_id"]
            click = {"kind": "click", "user_id": user, "item_id": item, "position": 0}
            self.visitor.post([{**click, "request_id": answer["request_id"]}])


def storm(replica: Service, user: str) -> None:
    """More is asked at once than a replica lets wait, for one user."""
    path = f"/v1/recommend?user_id={user}&k=10&shown=false"
    balancer = Balancer([replica.port])
    asyncio.run(load(balancer, lambda _: path, 0.0, _ASKED_AT_ONCE, _ASKED_AT_ONCE))


def _never_happened(users: Sequence[str]) -> list[Record]:
    """Each likes what there is not, a little from now, so that it is the newest."""
    now_ns = time.time_ns()
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_ns / 1e9 + 1))
    events = [
        {"event_id": f"{user}-{now_ns}", "kind": "like", "at": at, "user_id": user,
         "item_id": "never"}
        for user in users
    ]  # fmt: skip
    return [
        Record(EVENTS, 0, number, None, json.dumps(event).encode(), now_ns // 1_000)
        for number, event in enumerate(events)
    ]


def _newest(log: Log, topic: str) -> Record:
    ends = log.ends([topic])
    records = log.read({place: max(0, end - 5) for place, end in ends.items()}, 100, 1.0)
    return max(records, key=lambda record: record.logged_us)


def _not_a_number(log: Log) -> Append:
    """The first samples that tell of actions, with rewards that are no numbers."""
    for record in log.read(dict.fromkeys(log.positions(NOBODY, [SAMPLES]), 0), 1_000, 1.0):
        rows = decode_samples(record)
        if rows["reward"].null_count < rows.num_rows:
            where = rows.schema.get_field_index("reward")
            bad = pa.array(np.full(rows.num_rows, np.nan, np.float32), pa.float32())
            damaged = rows.set_column(where, rows.schema.field(where), bad)
            return encode_samples(damaged, partition=record.partition)
    raise RuntimeError("no sample tells of an action yet")
