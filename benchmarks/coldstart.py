"""Cold start on MovieLens-1M: new users in their first five actions, new items in their first day.

At midnight (UTC) before 20 November 2000 the stream of events stops being history. On that day come
601 users of whom nothing was known, and a tenth of the movies, drawn by a seed, that were hidden:
their `item` events come at midnight, and no action on them came before. All of the day is learnt as
it comes, and before an action which shows that a movie pleased (a reward of .5, here three stars)
each recommender is asked for 50 movies; it is a hit if the movie is among them. What the catalog
and the feature store know of the user goes up to the event before, else they are behind by 64
events at most, and models and hot lists by a training step of 256.

Everything is the product's own: the events pass the joiner, trainer and replica, the catalog and
the aggregator of the recipe `movielens`, in one process without a log; the feature store is a dict.
There is one stream for all recommenders:

- `headrace`: the `Recommender`;
- `id_only`: a model of its own, which is told nothing of what items are, for everyone;
- `popular`: what everyone does lately, for everyone;
- `switch`: `popular` for who did nothing yet, else the model that `headrace` has.

Each like among a new user's first five actions is asked for, and of the others a part by chance, so
that each stands for as many as its weight says. Recalls are medians over three seeds, of hidden
movies and of models; `_low` is where a 95% interval of a ratio begins, by a bootstrap over users or
over hidden movies. Who rates at MovieLens is shown pages of movies and rates what is on them in its
order. A model that sees the newest actions makes use of that, so its recall is not one of free
choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from benchmarks._plot import line_plot
from features.aggregator import Aggregator
from features.batch import Users, known_user
from features.behaviour import Behaviour
from features.catalog import Catalog
from features.definitions import USER_HISTORY, View
from infra.recipe import Recipe, load_recipe
from serving.answers import Wanted
from serving.recommender import Recommender
from serving.replica import Replica
from streaming.event_columns import event_columns
from streaming.events import encode_events
from streaming.ids import stable_id, stable_ids
from streaming.joiner import Joiner
from streaming.log import EVENTS, SAMPLES, Record
from streaming.sources.registry import open_source
from trainers.trainer import Trainer

Ids = NDArray[np.int64]
Ask = Callable[[str], set[int]]  # a user's id; the items that he is recommended

MIDNIGHT_US = int(np.datetime64("2000-11-20", "us").astype(np.int64))
DAY_US = 86_400_000_000
HIDDEN = 0.1  # of the movies
SEEDS = (1, 2, 3)
COUNT = 50
FIRST = 5
RECORD = 4_096  # events, of history
TURN = 64  # events of the day that the catalog and the feature store take at once, at most
STEP = 256  # events of the day that the models learn at once
ASKED_NEW_ITEMS, ASKED = 0.25, 0.04  # of the likes of hidden movies and of other likes
UNTESTED = 2.0  # more than any reward: the trainer's own test, which takes its time, is left out
RESAMPLES = 2_000
PICTURES = Path(__file__).parents[1] / "docs"

# How much is known, from so many actions on.
STAGES_OF_USERS = (0, 1, 2, 3, 4, 5, 10, 20)
STAGES_OF_ITEMS = (0, 1, 2, 4, 8, 16, 32, 64)

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "new_users_over_id_only": (1.3, UNBOUNDED),
    "new_users_over_popular": (1.15, UNBOUNDED),
    "new_items_over_id_only": (1.15, UNBOUNDED),
    "new_items_over_popular": (2.0, UNBOUNDED),
    "all_likes_over_switch": (0.98, UNBOUNDED),  # what newcomers cost everyone else
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Recall@50 of every recommender, by how much is known, and ratios."""
    torch.set_num_threads(1)
    recipe = load_recipe("movielens")
    asked = []
    for seed in SEEDS:
        report(f"seed {seed}: learning seven months, then asking for a day ...")
        asked.append(ask(seed, recipe, recommenders))
        report(f"  {asked[-1]}")
    found = figures(asked)
    draw(found)
    return found


def figures(asked: Sequence[Asked]) -> dict[str, float]:
    """What was found with each seed, together."""
    found = {}
    for part in asked[0].likes.parts:
        for name in asked[0].hits:
            found[f"{part}_{name}"] = median(one.recall(name, part) for one in asked)
    for part in ("new_users", "new_items", "all_likes"):
        for name in asked[0].hits:
            if name != "headrace":
                found[f"{part}_over_{name}"] = found[f"{part}_headrace"] / found[f"{part}_{name}"]
                found[f"{part}_over_{name}_low"] = lowest_ratio(asked, part, name)
    return found


# -- the stream ------------------------------------------------------------------------------


class Stream:
    """MovieLens-1M until the end of the day, with what is hidden hidden."""

    def __init__(self, seed: int, recipe: Recipe) -> None:
        source = open_source("ml-1m", Path(recipe.data) if recipe.data else None)
        events = source.batch(0, source.total)
        at_us = events["at"].cast(pa.int64()).to_numpy().copy()
        declares = pc.equal(events["kind"], "item").to_numpy(zero_copy_only=False)
        items = stable_ids(events["item_id"].fill_null("").to_pylist())
        movies = np.unique(items[declares])
        random = np.random.default_rng(seed)
        self.hidden = random.choice(movies, int(HIDDEN * len(movies)), replace=False)
        hidden = np.isin(items, self.hidden) & (at_us < MIDNIGHT_US)
        at_us[hidden & declares] = MIDNIGHT_US
        kept = np.flatnonzero(~hidden | declares)
        kept = kept[np.argsort(at_us[kept], kind="stable")]
        events = events.set_column(
            events.schema.names.index("at"),
            events.schema.field("at"),
            pa.array(at_us).cast(events["at"].type),
        ).take(pa.array(kept))
        midnight, end = np.searchsorted(at_us[kept], [MIDNIGHT_US, MIDNIGHT_US + DAY_US])
        self.events = events.slice(0, end)
        self.history, self.day = self.events.slice(0, midnight), self.events.slice(midnight)


def record(events: pa.RecordBatch) -> Record:
    """The events as a record that was logged when the last of them happened."""
    return Record(EVENTS, 0, 0, None, encode_events(events).value, events["at"][-1].value)


def slices(events: pa.RecordBatch, size: int) -> Iterator[pa.RecordBatch]:
    return (events.slice(start, size) for start in range(0, events.num_rows, size))


# -- what answers are made from --------------------------------------------------------------


class FeatureRows:
    """A feature store in a dict."""

    is_local = True

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}

    def push(self, view: View, rows: pa.Table) -> None:
        self._rows |= {(view.name, row[view.key]): row for row in rows.to_pylist()}

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]:
        return [self._rows.get((view.name, key), view.defaults) for key in keys]


class Known:
    """What is known of users and items at once: the catalog's and the aggregator's part."""

    def __init__(self, recipe: Recipe) -> None:
        users = recipe.behaviour
        self.catalog = Catalog(recipe.events, users, recipe.aggregator, None, recipe.catalog)
        self.features = FeatureRows()
        self._aggregator = Aggregator(recipe.aggregator, recipe.events, users)

    def take(self, events: pa.RecordBatch) -> None:
        self.take_records([record(events)])

    def take_records(self, records: Sequence[Record]) -> None:
        self.catalog.on_batch(records)
        for push in self._aggregator.on_batch(records):
            self.features.push(push.view, push.rows)

    def user(self, user_id: str) -> Users:
        """One user, as models see him."""
        user = stable_id(user_id)
        return known_user(user, self.features.read(USER_HISTORY, [user])[0])

    def popular(self, users: Users) -> list[int]:
        """The movies that are popular with everyone and that the user has not seen."""
        seen = set(users.history.values.tolist())
        found = self.catalog.popular(COUNT + len(seen))
        return [item for item in found if item not in seen][:COUNT]


class Learner:
    """A model, from events to the replica that answers."""

    def __init__(self, recipe: Recipe, seed: int, token_fields: tuple[str, ...]) -> None:
        trainer = recipe.trainer
        joiner = replace(recipe.joiner, token_fields=token_fields, liked_from=UNTESTED)
        self._joiner = Joiner(joiner, recipe.events, Behaviour(recipe.behaviour))
        options = {**trainer.options, "seed": seed}
        self._trainer = Trainer(replace(trainer, options=options, seed=seed), "coldstart")
        self._published = 0
        self.replica = Replica()

    def take(self, events: pa.RecordBatch) -> None:
        joined = self._joiner.on_batch([record(events)])
        self._trainer.on_batch(
            [Record(SAMPLES, 0, 0, one.key, one.value, 0) for one in joined if one.topic == SAMPLES]
        )

    def publish(self) -> None:
        self._published += 1
        for version in self._trainer.on_time(self._published * DAY_US):  # long after the last
            self.replica.take(version)

    def best(self, users: Users) -> list[int]:
        """The movies that the model by itself finds best for one user, but those he has seen."""
        with self.replica.reading() as served:
            if served is None:
                raise RuntimeError("no version was published before it was asked")
            found: list[int] = served.retrieve(users, COUNT, users.history.values)[0].tolist()
            return found


@dataclass(frozen=True)
class System:
    """All that recommenders may make use of."""

    known: Known
    model: Learner
    id_only: Learner

    @staticmethod
    def new(recipe: Recipe, seed: int) -> System:
        model = Learner(recipe, seed, recipe.joiner.token_fields)
        return System(Known(recipe), model, Learner(recipe, seed, ()))

    def learn(self, events: pa.RecordBatch) -> None:
        """The models learn; a version of each is out when this returns, and hot lists are new."""
        for learner in (self.model, self.id_only):
            for part in slices(events, RECORD):
                learner.take(part)
            learner.publish()
        self.known.catalog.on_time(events["at"][-1].value)


def recommenders(system: System, recipe: Recipe) -> dict[str, Ask]:
    """Those that are compared, by name."""
    known, model, id_only = system.known, system.model, system.id_only
    headrace = Recommender(model.replica, known.catalog, known.features, recipe.recommend)

    def switch(users: Users) -> list[int]:
        return model.best(users) if len(users.history.values) else known.popular(users)

    return {
        "headrace": lambda user_id: {
            stable_id(one.item.item_id) for one in headrace.recommend(Wanted(user_id, COUNT)).items
        },
        "id_only": lambda user_id: set(id_only.best(known.user(user_id))),
        "popular": lambda user_id: set(known.popular(known.user(user_id))),
        "switch": lambda user_id: set(switch(known.user(user_id))),
    }


# -- asking ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Likes:
    """n actions of the day that pleased and are asked for, in order, each column (n,).

    `row` is the place among the events of the day, `known` counts the user's actions before it and
    `acted` those on the item; `weight` says for how many likes it stands.
    """

    row: Ids
    user: Ids
    item: Ids
    new_user: NDArray[np.bool_]
    new_item: NDArray[np.bool_]
    known: Ids
    acted: Ids
    weight: NDArray[np.float64]

    @staticmethod
    def drawn(stream: Stream, recipe: Recipe, random: np.random.Generator) -> Likes:
        columns = event_columns(stream.events, np.zeros(stream.events.num_rows, np.int64))
        actions = recipe.behaviour.actions(columns)
        of_day = actions.rows >= stream.history.num_rows
        known, acted = earlier(actions.user_id), earlier(actions.item_id)
        new_user = ~np.isin(actions.user_id, actions.user_id[~of_day])
        new_item = np.isin(actions.item_id, stream.hidden)
        share = np.where(new_item, ASKED_NEW_ITEMS, ASKED)
        share[new_user & (known < FIRST)] = 1.0
        asked = of_day & (actions.reward >= recipe.joiner.liked_from)
        asked &= random.random(len(asked)) < share
        rows = actions.rows - stream.history.num_rows
        ids = (rows, actions.user_id, actions.item_id)
        told = (*ids, new_user, new_item, known, acted, 1 / share)
        return Likes(*(column[asked] for column in told))

    @property
    def parts(self) -> dict[str, NDArray[np.bool_]]:
        """The likes that figures are of, by name."""
        return {
            "new_users": self.new_user & (self.known < FIRST),
            "new_items": self.new_item,
            "all_likes": np.ones(len(self.row), np.bool_),
            **stages("new_users", self.new_user, self.known, STAGES_OF_USERS),
            **stages("new_items", self.new_item, self.acted, STAGES_OF_ITEMS),
        }


def earlier(ids: Ids) -> Ids:
    """How often each id came before.

    >>> earlier(np.array([7, 8, 7, 7])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(ids, kind="stable")
    _, starts, sizes = np.unique(ids[order], return_index=True, return_counts=True)
    counts = np.empty(len(ids), np.int64)
    counts[order] = np.arange(len(ids)) - np.repeat(starts, sizes)
    return counts


def stages(
    name: str, chosen: NDArray[np.bool_], evidence: Ids, begins: Sequence[int]
) -> dict[str, NDArray[np.bool_]]:
    """The chosen ones with each amount of evidence."""
    stage = np.searchsorted(begins, evidence, side="right") - 1
    return {f"{name}_from_{begin}": chosen & (stage == n) for n, begin in enumerate(begins)}


@dataclass(frozen=True)
class Asked:
    """What came of the likes: for each recommender whether it had the item, (n,)."""

    likes: Likes
    hits: Mapping[str, NDArray[np.bool_]]

    def recall(self, name: str, part: str) -> float:
        chosen = self.likes.parts[part]
        return float(np.average(self.hits[name][chosen], weights=self.likes.weight[chosen]))

    def __str__(self) -> str:
        return "; ".join(
            f"{part}: " + ", ".join(f"{name} {self.recall(name, part):.3f}" for name in self.hits)
            for part in ("new_users", "new_items", "all_likes")
        )


def ask(seed: int, recipe: Recipe, made: Callable[[System, Recipe], dict[str, Ask]]) -> Asked:
    """Lets a system learn the history, and asks its recommenders all day."""
    stream, system = Stream(seed, recipe), System.new(recipe, seed)
    for part in slices(stream.history, RECORD):
        system.known.take(part)
    system.learn(stream.history)
    likes = Likes.drawn(stream, recipe, np.random.default_rng(seed))
    asks = made(system, recipe)
    hits: dict[str, list[bool]] = {name: [] for name in asks}
    users = stream.day["user_id"].to_pylist()
    waiting = iter([*zip(likes.row.tolist(), likes.item.tolist(), strict=True), (len(users), 0)])
    row, item = next(waiting)
    for start in range(0, len(users), STEP):
        end = min(start + STEP, len(users))
        taken = start
        while row < end:
            if row - taken >= TURN or users[row] in users[taken:row]:
                system.known.take(stream.day.slice(taken, row - taken))
                taken = row
            for name, recommended in asks.items():
                hits[name].append(item in recommended(users[row]))
            row, item = next(waiting)
        system.known.take(stream.day.slice(taken, end - taken))
        system.learn(stream.day.slice(start, end - start))
    return Asked(likes, {name: np.array(found) for name, found in hits.items()})


def lowest_ratio(asked: Sequence[Asked], part: str, name: str) -> float:
    """Where a 95% interval of the ratio of recalls, headrace's over another's, begins."""
    chosen = [one.likes.parts[part] for one in asked]

    def column(of: Callable[[Asked], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([of(one)[rows] for one, rows in zip(asked, chosen, strict=True)])

    cluster = column(lambda one: one.likes.item if part == "new_items" else one.likes.user)
    _, numbers = np.unique(cluster, return_inverse=True)
    weight = column(lambda one: one.likes.weight)
    ours = np.bincount(numbers, weight * column(lambda one: one.hits["headrace"]))
    theirs = np.bincount(numbers, weight * column(lambda one: one.hits[name]))
    drawn = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    return float(np.quantile(ours[drawn].sum(1) / theirs[drawn].sum(1), 0.025))


def draw(found: Mapping[str, float]) -> None:
    """Recall as evidence grows."""
    for part, begins, file in (
        ("new_users", STAGES_OF_USERS, "coldstart.svg"),
        ("new_items", STAGES_OF_ITEMS, "coldstart-items.svg"),
    ):
        one = part.removeprefix("new_").removesuffix("s")
        line_plot(
            PICTURES / file,
            f"Cold start on MovieLens-1M: new {one}s",
            (f"log2(1 + actions known of the {one})", f"recall@{COUNT}"),
            [float(np.log2(1 + begin)) for begin in begins],
            {
                name: [found[f"{part}_from_{begin}_{name}"] for begin in begins]
                for name in ("headrace", "id_only", "popular", "switch")
            },
        )
