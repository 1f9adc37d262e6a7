"""What the planted world shows, as steps of a ranker's trainer; and the truth of what was shown.

The joiner makes the samples and the trainer learns them as they do in the product, but in one
process and without a log. What comes last is not learnt: there predictions are held against the
probabilities that the world knows, and not against what happened to happen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, reduce
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from benchmarks._streams import seeded
from features.behaviour import Behaviour
from features.shown import Pairs, Shown, read_shown
from infra.recipe import load_recipe
from streaming.events import encode_events
from streaming.ids import stable_ids
from streaming.joiner import Joiner
from streaming.log import EVENTS, SAMPLES, Record
from streaming.samples import decode_samples
from streaming.sources.chance import Bools, Floats, Ints, normal
from streaming.sources.choice import Scenario
from streaming.sources.population import PopulationConfig
from streaming.sources.traffic import Requests, Stock, Traffic, TrafficConfig
from streaming.sources.truth import Truth, numbers
from streaming.sources.world import World, WorldConfig
from trainers.tasks import labels_read
from trainers.trainer import Trainer, TrainerConfig

ROWS = {"optimiser": {"learning_rate": 1.0, "first_square": 1e-8}}  # they learn fast
FIELDS = ("user_id", "history", "scenario", "item_id", "category", "brand", "words")
# No searches: there the list depends on what the user has in mind, which no sample tells.
SCENARIOS = (
    Scenario("home", 0.7, decay=1.0),
    Scenario("similar", 0.2, length=6, decay=0.5),
    Scenario("deals", 0.1, decay=1.4, appeal=-0.2),
)
# Few, who come often and stay as they are: so that it is soon known how each item pleases each.
WORLD = WorldConfig(
    days=20,
    scenarios=SCENARIOS,
    population=PopulationConfig(
        users=500, items=300, user_life_days=10_000, item_life_days=10_000, drift_days=1_000
    ),
    traffic=TrafficConfig(sessions_per_user_day=1.6),
)


@dataclass(frozen=True)
class Setting:
    """Which world, and how it becomes samples.

    `promoted` is how much an item's place in a ranked list depends on something that is the item's
    own and has nothing to do with how it pleases, instead of on taste; 0 for the world's own
    policy. `keep_negatives` and `step_size` are the joiner's.
    """

    world: WorldConfig = WORLD
    promoted: float = 0.0
    keep_negatives: float = 1.0
    step_size: int = 512


class Learnable(Protocol):
    """What a trainer can be taught."""

    @property
    def records(self) -> Sequence[Record]:
        """Of the topic `samples`, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Impressions:
    """Records of the topic `samples`, in order, and the truth behind them."""

    records: Sequence[Record]
    truth: Truth
    ids: Mapping[int, int]  # the numbers of users and items by their stable ids
    scenarios: Sequence[str]

    def split(self, share: float = 0.8) -> tuple[Impressions, Impressions]:
        """What comes first, this share of the records, and the others."""
        end = int(share * len(self.records))
        first, rest = self.records[:end], self.records[end:]
        return replace(self, records=first), replace(self, records=rest)


@cache
def impressions(seed: int = 0, setting: Setting | None = None) -> Impressions:
    """A world's impressions and all that came of them; joined once in a process."""
    setting = setting or Setting()
    config = replace(setting.world, seed=seed)
    world, recipe = World(config), load_recipe("world")
    if setting.promoted:
        world.traffic = _Promoting(world, setting.promoted)
    rules = replace(recipe.joiner.impressions, keep_negatives=setting.keep_negatives)
    joiner = Joiner(
        replace(recipe.joiner, impressions=rules, step_size=setting.step_size),
        recipe.events,
        Behaviour(recipe.behaviour),
    )
    records: list[Record] = []
    names: set[str] = set()
    for number, part in enumerate(world.batches()):
        if number == config.days * world.blocks_a_day:
            break
        for column in ("user_id", "item_id"):
            names |= set(pc.unique(part[column].drop_null()).to_pylist())
        given = Record(EVENTS, 0, number, None, encode_events(part).value, part["at"][-1].value)
        records += (
            Record(one.topic, 0, len(records) + n, one.key, one.value, 0)
            for n, one in enumerate(a for a in joiner.on_batch([given]) if a.topic == SAMPLES)
        )
    named = sorted(names)
    ids = dict(zip(stable_ids(named).tolist(), numbers(named).tolist(), strict=True))
    return Impressions(records, Truth(world), ids, [s.name for s in config.scenarios])


def taught(
    model: str, options: Mapping[str, Any], given: Learnable, seed: int = 0, **config: Any
) -> Trainer:
    """The trainer of a ranker that has learnt all of it; `config` is the trainer's other."""
    plain = {"fields": FIELDS, "table": {"optimiser": {"learning_rate": 0.1}}}
    made = seeded(TrainerConfig(model=model, options={**plain, **options}, **config), seed)
    trainer = Trainer(made, "benchmark")
    for record in given.records:
        trainer.on_batch([record])
    return trainer


@dataclass(frozen=True, slots=True)
class Truths:
    """The true probabilities of n impressions, each (n,).

    `relevance` is P(click | seen) and `seen` P(seen) at the place where it was shown; `converts`,
    `acts` and `watched` are of those who click.
    """

    relevance: Floats
    seen: Floats
    converts: Floats
    acts: Floats
    watched: Floats


@dataclass(frozen=True, slots=True)
class Asked(Truths):
    """n pairs that were shown, each impression once, and their truth."""

    shown: Shown

    @property
    def pairs(self) -> Pairs:
        return self.shown.pairs

    @property
    def places(self) -> Ints:
        """(n,), from 0 on."""
        return self.pairs.positions.astype(np.int64)

    @property
    def requests(self) -> Ints:
        """(n,), equal for pairs of one list."""
        return self.shown.groups


def once(given: Impressions) -> pa.RecordBatch:
    """The rows of all impressions of which it is known whether they were clicked on."""
    return clicked_or_not(pa.concat_batches([decode_samples(record) for record in given.records]))


def clicked_or_not(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Of samples those that tell of an impression whether it was clicked on."""
    known = (rows[name].is_valid() for name in ("user_id", "label_click", "position"))
    return rows.filter(reduce(pc.and_, known))


def true(given: Impressions, rows: pa.RecordBatch) -> Truths:
    """The truth of the impressions in rows."""
    users, items = (
        np.array([given.ids[one] for one in rows[column].to_pylist()], np.int64)
        for column in ("user_id", "item_id")
    )
    places, at_us = rows["position"].to_numpy(), rows["at"].cast(pa.int64()).to_numpy()
    where = rows["scenario"].to_numpy(zero_copy_only=False)
    truth = given.truth
    found = np.zeros((5, len(users)))
    for name in given.scenarios:
        here = np.flatnonzero(where == name)
        question = (users[here], items[here], name, at_us[here])
        found[:, here] = (
            truth.relevance(*question),
            truth.examination(places[here], name),
            truth.conversion_probability(*question),
            truth.action_probability(*question),
            truth.watch_fraction(*question),
        )
    return Truths(*found)


def asked(given: Impressions, trainer: Trainer) -> Asked:
    """All impressions, as this trainer's ranker is asked about them; with the labels it learns."""
    rows = once(given)
    truth = true(given, rows)
    shown = described(rows, trainer)
    return Asked(**{f.name: getattr(truth, f.name) for f in fields(Truths)}, shown=shown)


def described(rows: pa.RecordBatch, trainer: Trainer) -> Shown:
    """Samples as this trainer's ranker is asked about them."""
    shown: Shown = trainer.family.describe(read_shown(rows, labels_read(trainer.model.tasks)))
    return shown


@torch.no_grad()
def predicted(trainer: Trainer, pairs: Pairs) -> dict[str, NDArray[np.float32]]:
    """What the ranker expects of each pair (n,), for each task."""
    found = trainer.model.predict(pairs)
    return {task: made.cpu().numpy() for task, made in found.items()}


def agreement(predictions: Any, truth: Any, groups: Ints) -> float:
    """The share of all pairs within groups that stand in the order of the truth, a tie counted
    half: 0.5 by chance. Each argument (n,).
    """
    order = np.argsort(groups, kind="stable")
    predictions, truth, groups = (np.asarray(x)[order] for x in (predictions, truth, groups))
    won = total = 0.0
    for apart in range(1, len(groups)):
        same = groups[apart:] == groups[:-apart]
        if not same.any():
            break
        a, b = (np.sign(x[apart:] - x[:-apart])[same] for x in (predictions, truth))
        won += float((a[b != 0] == b[b != 0]).sum() + 0.5 * (a[b != 0] == 0).sum())
        total += float((b != 0).sum())
    return won / total


class _Promoting(Traffic):
    """Ranks by what an item is promoted for, with the policy's noise."""

    def __init__(self, world: World, strength: float) -> None:
        config = world.config
        super().__init__(world.population, config.scenarios, config.traffic, config.policy)
        self._strength = strength

    def _ranked(
        self,
        requests: Requests,  # noqa: ARG002
        rows: Ints,  # noqa: ARG002
        items: Ints,
        shown: Bools,
        stock: Stock,
        rng: np.random.Generator,
    ) -> Ints:
        promoted = normal(self._population.seed, "promoted", stock.items.number[items])
        believed = self._strength * promoted
        believed += self._policy.noise * rng.standard_normal(items.shape)
        order = np.argsort(np.where(shown, -believed, np.inf), axis=1, kind="stable")
        return np.take_along_axis(items, order, axis=1)
