"""A source's events as steps of learning, and whatever ranks items: tested first, then taught.

The joiner makes the samples and the trainer learns them as they do in the product, but in one
process, without a log and without publishing. Before each step every contender is asked to rank
all items that are known by then for each user of the step who took something.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from features.batch import Ids, Jagged, Samples, Users, read_samples
from features.behaviour import Behaviour
from infra.recipe import Recipe, load_recipe
from streaming.events import encode_events
from streaming.joiner import Joiner
from streaming.log import EVENTS, SAMPLES, Append, Record
from streaming.samples import decode_samples, encode_samples
from streaming.sources.registry import open_source
from streaming.sources.source import Source
from trainers import models
from trainers.evaluation import NOT_FOUND, RankingQuality, best_scores, corpus_ranks
from trainers.trainer import Trainer, TrainerConfig

_AT_ONCE = 4_096  # events
_UNTESTED = 2.0  # more than any reward: the tests are made here, and the trainer's own left out
_TESTED_AT_ONCE = 256


@dataclass(frozen=True)
class Data:
    """What is asked about a source: the items of actions whose reward is at least `liked_from`.

    `rewards` are those of kinds that the recipe rewards otherwise. With `repeats` an item may be
    taken again; else it is asked for only if it is not in the history, and items of the history are
    not ranked.
    """

    recipe: str = "movielens"
    rewards: Mapping[str, float] = field(default_factory=dict)
    token_fields: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ()
    liked_from: float = 0.0
    repeats: bool = True

    def asks(self, samples: Samples) -> Ids:
        """The numbers of the samples that are asked for."""
        asked = samples.rewards >= self.liked_from
        if not self.repeats:
            history = samples.users.history
            again = history.values == np.repeat(samples.item_ids, history.lengths)
            asked[history.owners()[again]] = False
        return np.flatnonzero(asked)


DATA: Mapping[str, Data] = {
    "ml-1m": Data(token_fields=("genres", "year"), liked_from=0.5, repeats=False),
    "ml-latest-small": Data(token_fields=("genres", "year"), liked_from=0.5, repeats=False),
    "taobao-2h": Data(token_fields=("category",), repeats=False),
    "taobao-114": Data(token_fields=("category",), repeats=False),
    "diginetica": Data(),
    "trivago": Data(repeats=False),  # of ten clicks nine are on the hotel of the last one
    "world": Data("world", token_fields=("category", "brand", "words")),
}


@dataclass(frozen=True, slots=True)
class Step:
    """So many samples, and the items that are declared no later than their last one."""

    declares: Record | None
    learns: Record
    samples: Samples


@dataclass(frozen=True, slots=True)
class Stream:
    """All steps of a source, in the order of time, and what is asked about its samples."""

    name: str
    data: Data
    steps: Sequence[Step]

    def __len__(self) -> int:
        return sum(len(step.samples.item_ids) for step in self.steps)

    def first(self, steps: int) -> Stream:
        """The stream up to there."""
        return replace(self, steps=self.steps[:steps])


@cache
def stream(name: str, events: int | None = None, step_size: int = 256) -> Stream:
    """The steps of a source by its name, of its first `events`; joined once in a process.

    Raises:
        SourceError: its files are not there; set HEADRACE_DATA.
    """
    source, data = open_source(name), DATA[name]
    return Stream(name, data, join(source, data, events=events, step_size=step_size))


def join(
    source: Source, data: Data, *, events: int | None = None, step_size: int = 256
) -> list[Step]:
    """The steps of any source: its events through the joiner of the recipe, all but the actions
    left out, so many of them a step.
    """
    return list(steps(samples_of(source, data, events), step_size))


def samples_of(source: Source, data: Data, events: int | None = None) -> pa.RecordBatch:
    """The rows of samples that `joined` makes of a source, or of its first `events`."""
    total = min(events or source.total, source.total)
    read = (source.batch(at, min(_AT_ONCE, total - at)) for at in range(0, total, _AT_ONCE))
    return joined(read, data)


def joined(events: Iterator[pa.RecordBatch], data: Data) -> pa.RecordBatch:
    """The rows that the joiner makes of events: actions, and declarations of items."""
    recipe: Recipe = load_recipe(data.recipe)
    config = replace(
        recipe.joiner,
        token_fields=data.token_fields,
        text_fields=data.text_fields,
        liked_from=_UNTESTED,
    )
    rewards = {**recipe.behaviour.rewards, **data.rewards}
    joiner = Joiner(config, recipe.events, Behaviour(replace(recipe.behaviour, rewards=rewards)))
    found = []
    for part in events:
        at_us = part["at"][-1].value
        record = Record(EVENTS, 0, 0, None, encode_events(part).value, at_us)
        for one in joiner.on_batch([record]):
            if one.topic == SAMPLES:
                rows = decode_samples(_record(one))
                found.append(rows.filter(pc.or_(rows["user_id"].is_null(), _acts(rows))))
    return pa.concat_batches(found)


def steps(rows: pa.RecordBatch, size: int) -> Iterator[Step]:
    """The rows as steps of `size` actions, the last one of fewer."""
    acts = _acts(rows).to_numpy(zero_copy_only=False)
    number = (np.cumsum(acts) - acts) // size  # what is declared belongs to the action behind it
    bounds = np.searchsorted(number, np.arange(number[-1] + 2))
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part, taken = rows.slice(begin, end - begin), pa.array(acts[begin:end])
        if not acts[begin:end].any():
            continue
        declared = part.filter(pc.invert(taken))
        learns = part.filter(taken)
        yield Step(
            _record(encode_samples(declared)) if declared.num_rows else None,
            _record(encode_samples(learns)),
            read_samples(learns),
        )


def _acts(rows: pa.RecordBatch) -> pa.BooleanArray:
    return pc.and_(rows["user_id"].is_valid(), rows["reward"].is_valid())


def _record(made: Append) -> Record:
    return Record(made.topic, 0, 0, made.key, made.value, 0)


# -- what learns -----------------------------------------------------------------------------


class Ranker(Protocol):
    """Anything that can be asked how it ranks items. An item's place is a number of its own."""

    def declare(self, step: Step) -> None:
        """Gets to know the items that a step declares."""
        ...

    def find(self, items: Ids) -> Ids:
        """The place of each item, -1 for one that is not known."""
        ...

    def scores(self, users: Users) -> NDArray[np.float32]:
        """(B, N), of every item that is known for every user."""
        ...

    def learn(self, step: Step) -> None: ...


class Learner:
    """A model, learnt by the product's own trainer; items are scored by the vectors that the
    trainer has of them, as in serving.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self.trainer = Trainer(config, "benchmark")

    def declare(self, step: Step) -> None:
        if step.declares is not None:
            self.trainer.on_batch([step.declares])

    def find(self, items: Ids) -> Ids:
        found: Ids = self.trainer.family.corpus.find(items)
        return found

    @torch.no_grad()
    def scores(self, users: Users) -> NDArray[np.float32]:
        queries = self.queries(users)
        found: NDArray[np.float32] = best_scores(
            queries, self.trainer.family.corpus.vectors
        ).numpy()
        return found

    @torch.no_grad()
    def queries(self, users: Users) -> torch.Tensor:
        """(B, K, d)."""
        model = self.trainer.model
        if model.describes:
            users = replace(
                users, described=self.trainer.family.corpus.describe(users.history.values)
            )
        queries: torch.Tensor = model.query(users).cpu()
        return queries

    @torch.no_grad()
    def refresh(self) -> None:
        """Computes the vectors of all items anew, of which the trainer renews a few each step."""
        corpus = self.trainer.family.corpus
        for places in np.array_split(np.arange(len(corpus)), 1 + len(corpus) // 4_096):
            corpus.refresh(places, self.trainer.model.items(corpus.items(places)).cpu())

    def learn(self, step: Step) -> None:
        self.trainer.on_batch([step.learns])


@contextmanager
def registered(name: str, model: type[Any]) -> Iterator[str]:
    """Lets a trainer make a model that is no system, for as long as the block lasts; its name."""
    own = f"claims.{name}"
    models.register(own)(model)
    try:
        yield own
    finally:
        del models._REGISTRY[own], models._FAMILIES[own]


def seeded(config: TrainerConfig, seed: int, **options: Any) -> TrainerConfig:
    """The same, drawing from another seed, with other options of the model."""
    return replace(config, seed=seed, options={**config.options, **options, "seed": seed})


# -- test, then train ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tested:
    """n tests in order, each column (n,), and the time that all took.

    `rank` counts the items before the one that was taken, `known` the actions of the user before
    it, `popularity` how often the item had been taken; `number` is the step's.
    """

    rank: Ids
    item: Ids
    user: Ids
    at_us: Ids
    known: Ids
    popularity: Ids
    number: Ids
    samples: int = 0
    learn_s: float = field(default=0.0, compare=False)

    def figures(
        self, ks: Sequence[int] = (10, 50), part: NDArray[np.bool_] | None = None
    ) -> dict[str, float]:
        """`recall@k` and `ndcg@k` of all tests, or of a part (n,)."""
        quality = RankingQuality(ks)
        quality.update(self.rank if part is None else self.rank[part])
        found = quality.get()
        return {f"{what}@{k}": found[f"{what}@{k}"] for what in ("recall", "ndcg") for k in ks}

    def recall(self, k: int = 50, part: NDArray[np.bool_] | None = None) -> float:
        return self.figures([k], part)[f"recall@{k}"]

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.learn_s


def progressive(given: Stream, ranker: Ranker, *, share: float = 1.0) -> Tested:
    """Lets a ranker answer for the samples of every step, of `share` of them, and then learn it.

    The samples that are asked for are the same for every ranker.
    """
    random = np.random.default_rng(0)
    taken: dict[int, int] = {}
    found, samples, seconds = [], 0, 0.0
    for number, step in enumerate(given.steps):
        begun = time.process_time()
        ranker.declare(step)
        seconds += time.process_time() - begun
        items = step.samples.item_ids
        asked = given.data.asks(step.samples)
        rows = asked[random.random(len(asked)) < share]
        if rows.size:
            users = step.samples.users.take(rows)
            ranks = ranked(ranker, users, items[rows], repeats=given.data.repeats)
            popularity = np.array([taken.get(item, 0) for item in items[rows].tolist()])
            columns = (items[rows], users.ids, step.samples.at_us[rows], users.history.lengths)
            found.append(np.stack([ranks, *columns, popularity, np.full(len(rows), number)]))
        begun = time.process_time()
        ranker.learn(step)
        seconds += time.process_time() - begun
        samples += len(items)
        for item in items.tolist():
            taken[item] = taken.get(item, 0) + 1
    table = np.concatenate(found, axis=1) if found else np.empty((7, 0), np.int64)
    rank, item, user, at_us, known, popularity, at_step = table
    return Tested(rank, item, user, at_us, known, popularity, at_step, samples, seconds)


def ranked(ranker: Ranker, users: Users, items: Ids, *, repeats: bool) -> Ids:
    """The rank (n,) of each user's item among all that are known; 0 is the first."""
    ranks = np.full(len(items), NOT_FOUND)
    for begin in range(0, len(items), _TESTED_AT_ONCE):
        rows = np.arange(begin, min(begin + _TESTED_AT_ONCE, len(items)))
        some, targets = users.take(rows), ranker.find(items[rows])
        if (targets < 0).all():
            continue
        hidden = Jagged.of(np.empty(0, np.int64), np.zeros(len(rows), np.int64))
        if not repeats:
            hidden = Jagged(ranker.find(some.history.values), some.history.offsets)
        ranks[rows] = corpus_ranks(ranker.scores(some), targets, hidden)
    return ranks
