"""What each stage of the recommender is worth to its visitors, and what it is worth to be fresh.

In the planted world (docs/world.md), whose people then visit a recommender: what they click, buy
and watch of its answers is what it learns from next, so each system lives in a world of its own.
They are

- `popular`: what everybody does lately;
- `retrieval`: the recipe's retriever, as it proposes, learnt `evenly`;
- `ranker`: and its ranker, which orders what is proposed, without regard to positions;
- `debiased`: and what the recipe does about the bias of positions;
- `coec`: and how items do where they are shown, as a field: the recipe's own;

the last four each `live`, where a version goes out after every turn, and `daily`, where one goes
out at midnight, of the same stream. All begin with the same logged days. Everything is the
product's own, in one process without a log, as in `benchmarks.coldstart`.

What visitors do is drawn; figures are of the truth behind it: the clicks, purchases and seconds
watched that are to be expected of each answer, per request, over all days but the first. Draws of a
seed are the same for all systems, so that their differences are paired; `_low` and `_high` bound a
95% interval over seeds.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

import pyarrow as pa
import torch
from pydantic import PositiveInt

from benchmarks._claims import interval
from benchmarks._plot import line_plot
from benchmarks.coldstart import PICTURES, RECORD, Known
from features.behaviour import Behaviour
from infra.recipe import Recipe, load_recipe
from infra.visitor import Visit, Visitors
from serving.answers import Wanted
from serving.recommender import Recommender
from serving.replica import Replica, ranker, retriever
from streaming.events import encode_event, encode_events, parse_event
from streaming.joiner import Joiner
from streaming.log import EVENTS, SAMPLES, Record
from streaming.sources.world import DAY_US, World, WorldConfig
from trainers.models import RANKING, family_of
from trainers.trainer import Trainer, TrainerConfig

Report = Callable[[str], None]
FIGURES = ("clicks", "buys", "watched_s")
SYSTEMS = ("popular", "retrieval", "ranker", "debiased", "coec")
TURN = 64  # requests between two turns of learning, at most
PATIENT_MS = 3.6e6  # nothing is left out of an answer because this machine is slow

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "clicks_ranker_live_over_retrieval_live": (1.0, UNBOUNDED),
    "clicks_retrieval_live_over_popular": (1.0, UNBOUNDED),
}


@dataclass(frozen=True)
class Config:
    """`logged` days are learnt first; `days` of visits follow, `requests` of `visitors` a day."""

    logged: PositiveInt = 3
    days: PositiveInt = 3
    requests: PositiveInt = 2_000
    visitors: PositiveInt = 400
    seeds: tuple[int, ...] = (1, 2, 3)
    systems: tuple[str, ...] = SYSTEMS


def run(report: Report, config: Config) -> dict[str, float]:
    """What every system is worth, and how much more than another."""
    torch.set_num_threads(1)
    found: dict[str, list[list[Visit]]] = {}
    for seed in config.seeds:
        for name, system, fresh in systems(config):
            report(f"seed {seed}: {name}")
            lived = Life(config, seed, system, fresh=fresh).visits()
            found.setdefault(name, []).append(lived)
            told = ", ".join(f"{k} {v:.4f}" for k, v in worth(config, lived).items())
            report(f"  per request: {told}")
    figures = compared(config, found)
    draw(config, found)
    return figures


def systems(config: Config) -> Iterator[tuple[str, str, bool]]:
    """Each by its name, what it is made of, and whether it is updated live."""
    for system in config.systems:
        if system == "popular":
            yield system, system, True
        else:
            yield f"{system}_live", system, True
            yield f"{system}_daily", system, False


# -- one system's life -----------------------------------------------------------------------


class Life:
    """A system and its visitors, from the first logged day to the last visit."""

    def __init__(self, config: Config, seed: int, system: str, *, fresh: bool) -> None:
        self._config = config
        self._world = World(WorldConfig(seed=seed, days=config.logged))
        self._visitors = Visitors(self._world, config.visitors, seed)
        self._fresh = fresh
        recipe = load_recipe("world")
        self._recipe = replace(
            recipe,
            trainer=replace(recipe.trainer, evenly=True),  # visits are fewer than the log's
            recommend=replace(
                recipe.recommend, within_ms=PATIENT_MS, source_within_ms=PATIENT_MS, ranker_from=0
            ),
        )
        self._known = Known(self._recipe)
        self._models = [] if system == "popular" else [*models(self._recipe, system)]
        self._joiner = Joiner(
            replace(self._recipe.joiner, liked_from=2.0), self._recipe.events,
            Behaviour(self._recipe.behaviour),
        )  # fmt: skip
        self._now_us = self._world.start_us
        self._published = itertools.count(1)
        self._popular = system == "popular"
        by_family = {family_of(one.config.model): one.replica for one in self._models}
        self._recommender = None if self._popular else Recommender(
            self._models[0].replica, self._known.catalog, self._known.features,
            self._recipe.recommend,
            rankers=[by_family[RANKING]] if RANKING in by_family else [],
            kinds=self._recipe.behaviour.kinds,
            clock_us=lambda: self._now_us,
        )  # fmt: skip

    def visits(self) -> list[Visit]:
        """What came of each request, in order."""
        self._learn_log()
        self._publish()
        config, found = self._config, []
        waiting: list[tuple[int, int, dict[str, Any]]] = []
        order, day = itertools.count(), config.logged
        for number in range(config.days * config.requests):
            at = config.logged + number / config.requests  # days of the world
            if number % TURN == 0:
                self._take(waiting, at)
                if self._fresh or int(at) > day:
                    self._publish()
                    day = int(at)
            self._now_us = self._world.start_us + int(at * DAY_US)
            user, place, rng = self._visitors.asks(number)
            scenario = self._world.config.scenarios[place]
            answer = self._answer(f"u{user}", scenario.length, scenario.name, number)
            events, visit = self._visitors.reacts(user, place, at, answer, rng)
            found.append(visit)
            for later in events:
                at_us = self._now_us + int(1e6 * later.delay_s)
                heapq.heappush(waiting, (at_us, next(order), later.event))
        return found

    def _answer(self, user: str, count: int, scenario: str, number: int) -> dict[str, Any]:
        catalog = self._known.catalog
        if self._recommender is None:
            listed = catalog.get_each(self._known.popular(self._known.user(user))[:count])
            items = [one for one in listed if one is not None]
        else:
            answer = self._recommender.recommend(Wanted(user, count, scenario))
            if answer.degraded:
                raise RuntimeError(f"an answer lacks a part: {answer.degraded}")
            items = [one.item for one in answer.items]
        return {
            "request_id": f"visit-{number}",
            "items": [
                {"item_id": one.item_id, "title": one.title, "attributes": one.attributes}
                for one in items
            ],
        }

    # -- learning --------------------------------------------------------------------------

    def _learn_log(self) -> None:
        """The days that were logged before anybody visits."""
        world, at = self._world, 0
        while at < world.total:
            part = world.batch(at, RECORD)
            at += part.num_rows
            self._hear(part)

    def _take(self, waiting: list[tuple[int, int, dict[str, Any]]], day: float) -> None:
        """What has happened by then, and the world's births."""
        now_us = self._world.start_us + int(day * DAY_US)
        said = []
        while waiting and waiting[0][0] <= now_us:
            at_us, _, event = heapq.heappop(waiting)
            at = datetime.fromtimestamp(at_us / 1e6, UTC).isoformat()
            said.append(json.dumps({**event, "at": at}).encode())
        rules = self._recipe.events
        events = [encode_event(parse_event(one, rules, now_us)) for one in said]
        records = [Record(EVENTS, 0, n, one.key, one.value, now_us) for n, one in enumerate(events)]
        if records:
            self._hear_records(records)
        self._known.catalog.on_time(now_us)

    def _hear(self, events: pa.RecordBatch) -> None:
        at_us = events["at"][-1].value
        self._hear_records([Record(EVENTS, 0, 0, None, encode_events(events).value, at_us)])
        self._known.catalog.on_time(at_us)

    def _hear_records(self, records: list[Record]) -> None:
        self._known.take_records(records)
        for one in self._joiner.on_batch(records):
            if one.topic == SAMPLES:
                sample = Record(SAMPLES, 0, 0, one.key, one.value, records[-1].logged_us)
                for model in self._models:
                    model.trainer.on_batch([sample])

    def _publish(self) -> None:
        at_us = next(self._published) * DAY_US  # long after the last
        for model in self._models:
            for version in model.trainer.on_time(at_us):
                model.replica.take(version)


@dataclass(frozen=True)
class Model:
    """A model that learns, and the replica that serves it."""

    config: TrainerConfig
    trainer: Trainer
    replica: Replica[Any]


def models(recipe: Recipe, system: str) -> Iterator[Model]:
    """Those of the recipe that a system has, the retriever first."""
    for role, config in recipe.trainers.items():
        ranks = family_of(config.model) == RANKING
        if ranks and system == "retrieval":
            continue
        other = worn(config.options).get(system, {}) if ranks else {}
        chosen = replace(config, options={**config.options, **other})
        yield model(role, chosen, ranker if ranks else retriever)


def worn(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the recipe's ranker has in another way, by the system."""
    without = {"fields": [name for name in options["fields"] if name != "coec"]}
    return {"ranker": {**without, "position": {"how": "ignore"}}, "debiased": without}


def model(role: str, config: TrainerConfig, make: Any) -> Model:
    replica: Replica[Any] = Replica(None, config.called, make)
    return Model(config, Trainer(config, role), replica)


# -- figures ---------------------------------------------------------------------------------


def worth(config: Config, visits: list[Visit]) -> dict[str, float]:
    """What is to be expected per request, once the first day of visits is over."""
    later = visits[config.requests if config.days > 1 else 0 :]
    return {
        "clicks": fmean(v.expected for v in later),
        "buys": fmean(v.expected_buys for v in later),
        "watched_s": fmean(v.expected_watched_s for v in later),
    }


def compared(config: Config, found: Mapping[str, list[list[Visit]]]) -> dict[str, float]:
    """Of every system its worth, and its ratio to each that has less."""
    each = {name: [worth(config, lived) for lived in lives] for name, lives in found.items()}
    figures: dict[str, float] = {}
    for figure in FIGURES:
        for name, worths in each.items():
            figures[f"{figure}_{name}"] = fmean(one[figure] for one in worths)
        for ours, theirs in pairs(list(each)):
            ratios = [a[figure] / b[figure] for a, b in zip(each[ours], each[theirs], strict=True)]
            key = f"{figure}_{ours}_over_{theirs}"
            figures[key] = fmean(ratios)
            if len(ratios) > 1:
                _, figures[f"{key}_low"], figures[f"{key}_high"] = interval(ratios)
    return figures


def pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """What is compared with what."""
    wanted = [
        ("retrieval_live", "popular"), ("ranker_live", "retrieval_live"),
        ("debiased_live", "ranker_live"), ("coec_live", "debiased_live"),
        ("coec_live", "ranker_live"), ("coec_live", "popular"),
        *((f"{name}_live", f"{name}_daily") for name in SYSTEMS[1:]),
    ]  # fmt: skip
    return (pair for pair in wanted if set(pair) <= set(names))


def draw(config: Config, found: Mapping[str, list[list[Visit]]]) -> None:
    """Expected clicks per request as the visits go on."""
    parts = 4 * config.days
    size = config.days * config.requests // parts
    line_plot(
        PICTURES / "stages.svg",
        "Visitors of the planted world",
        ("days of visits", "clicks per request, expected"),
        [(part + 0.5) / 4 for part in range(parts)],
        {
            name: [
                fmean(v.expected for lived in lives for v in lived[part * size : (part + 1) * size])
                for part in range(parts)
            ]
            for name, lives in found.items()
        },
    )
