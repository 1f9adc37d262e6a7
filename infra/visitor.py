"""A live visitor: somebody of the planted world who looks at an answer and reacts to it.

Tastes are the world's. On the world's own items visitors see what the world planted; on any other
catalog, tastes are planted by hashing what the catalog says of an item, so that the same visitor
likes the same items on every run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streaming.ids import stable_id
from streaming.sources.chance import Floats, picked, uniform
from streaming.sources.choice import REACTIONS, Pairs, Reactions, react
from streaming.sources.population import Interests, Items
from streaming.sources.truth import Truth
from streaming.sources.world import DAY_US, World

_BEST_KEPT = 4_096
_ITEMS_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of one answer: its `clicks`, and the `expected` ones; those of the `best` list; and
    the purchases and the seconds watched that are expected.

    What is expected is the truth's, each item by itself; `best` is None on a catalog that is not
    the world's.
    """

    shown: int
    clicks: int
    expected: float
    best: float | None
    expected_buys: float = 0.0
    expected_watched_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LaterEvent:
    """An event, and how many seconds of life after the answer it happens."""

    delay_s: float
    event: dict[str, Any]


class Tastes:
    """What visitors feel about the items of an answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kept: dict[tuple[str, str], tuple[Items, bool]] = {}

    def items(self, shown: Sequence[Mapping[str, Any]]) -> tuple[Items, bool]:
        """The traits of the items of an answer, and whether all are the world's own."""
        found = [self._found(item) for item in shown]
        names = [f.name for f in dataclasses.fields(Items)]
        columns = ([getattr(row, name) for row, _ in found] for name in names)
        return Items(*map(np.concatenate, columns)), all(known for _, known in found)

    def _found(self, item: Mapping[str, Any]) -> tuple[Items, bool]:
        key = (str(item["item_id"]), str(item.get("title")))
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _ITEMS_KEPT:
                self._kept.clear()
            own = self._own(*key)
            found = (self._planted(item), False) if own is None else (own, True)
            self._kept[key] = found
        return found

    def _own(self, name: str, title: str) -> Items | None:
        """The world's item, if it has one of that number and title."""
        if not (name[:1] == "i" and name[1:].isascii() and name[1:].isdigit() and len(name) < 10):
            return None
        made = self._world.population.items(np.array([int(name[1:])]))
        described = json.loads(self._world.descriptions.of_items(made)[0])
        return made if described["title"] == title else None

    def _planted(self, item: Mapping[str, Any]) -> Items:
        """The traits of an item of another catalog, by hashing its attributes and its id."""
        population, seed = self._world.population, self._world.config.seed
        number = np.array([stable_id(str(item["item_id"]))])
        drawn = [stable_id(token) for token in _tokens(item.get("attributes") or {})]
        chances = uniform(seed, "planted topic", np.array(drawn or number.tolist()))
        topics = picked(population.topic_weights, chances)
        dimensions = np.arange(population.config.dimensions)
        apart = population.scattered("planted", number[:, None], dimensions)
        vector = population.centres[topics].mean(axis=0) + apart
        unit = vector / np.linalg.norm(vector)
        return replace(population.items(number), number=number, topic=topics[:1], vector=unit)


class Visitors:
    """The people: who asks, where, and what comes of the answer.

    All draws belong to the number of the request, whichever thread makes it.
    """

    def __init__(self, world: World, count: int, seed: int) -> None:
        self.tastes = Tastes(world)
        self._world = world
        self._truth = Truth(world)
        self._seed = seed
        self._users = world.population.users(np.arange(count))
        self._activity = np.cumsum(self._users.activity)
        scenarios = world.config.scenarios
        # Nobody can ask the service by a query, unless the world has nothing else.
        places = [i for i, s in enumerate(scenarios) if not s.searched] or [0]
        self._places = np.array(places)
        self._shares = np.cumsum([scenarios[i].share for i in places])
        self._minds: tuple[int, Interests] | None = None
        self._best: dict[tuple[int, int, int], float] = {}

    def asks(self, number: int) -> tuple[int, int, np.random.Generator]:
        """The user, the place of the scenario, and the generator of a request."""
        rng = np.random.default_rng([self._seed, 11, number])
        user = int(picked(self._activity, rng.random(1))[0])
        place = int(self._places[picked(self._shares, rng.random(1))[0]])
        return user, place, rng

    def reacts(
        self, user: int, place: int, day: float, answer: Mapping[str, Any], rng: np.random.Generator
    ) -> tuple[list[LaterEvent], Visit]:
        """What happens to an answer at a time (days of the world), impressions first, if the
        service has not logged them itself.
        """
        scenario, choice = self._world.config.scenarios[place], self._world.choice
        listed = answer["items"][: scenario.length]
        if not listed:
            return [], Visit(0, 0, 0.0, None)
        code = np.array([place])
        person = self._users.take(np.array([user]))
        interests = self._interests(user, int(day * 24))
        slot = picked(np.cumsum(interests.weights[0]), rng.random(1))
        items, known = self.tastes.items(listed)
        items = items.take((np.arange(len(listed))[None, :],))
        pairs = choice.pairs(person, interests.focused(slot, choice.focus[code]), items, code)
        pairs = choice.in_lists(pairs, items, np.ones((1, len(listed)), bool))
        seen = choice.examination(np.arange(len(listed)), code)
        done = react(choice, pairs, items, seen * choice.click(pairs), rng)

        def expected(after: Callable[[Pairs], Floats]) -> float:
            def alone(pairs: Pairs) -> Floats:
                return seen * choice.click(pairs) * after(pairs)

            return float(choice.over_interests(alone, person, interests, items, code).sum())

        best = self._best_clicks(user, place, day, len(listed)) if known else None
        about = {
            "user_id": f"u{user}", "request_id": answer["request_id"], "scenario": scenario.name,
        }  # fmt: skip
        clicks = len(set(done.positions[done.kinds == REACTIONS.index("click")].tolist()))
        visit = Visit(
            len(listed),
            clicks,
            expected(lambda pairs: np.ones(pairs.taste.shape)),
            best,
            expected(choice.conversion),
            expected(lambda pairs: choice.watched(pairs) * items.length_s),
        )
        names = [str(one["item_id"]) for one in listed]
        events = _events(names, about, done)
        if answer.get("logged"):
            events = (one for one in events if one.event["kind"] != "impression")
        return list(events), visit

    def _interests(self, user: int, hour: int) -> Interests:
        """What a user is after; everybody's is worked out at once, and kept for an hour."""
        if self._minds is None or self._minds[0] != hour:
            days = np.full(len(self._users.number), hour / 24)
            self._minds = (hour, self._world.population.interests(self._users, days))
        everybody, one = self._minds[1], slice(user, user + 1)
        return Interests(everybody.topics[one], everybody.weights[one], everybody.vectors[one])

    def _best_clicks(self, user: int, place: int, day: float, length: int) -> float:
        """The clicks that the best list of living items would get, kept for an hour."""
        key = (user, place, int(day * 24))
        if key not in self._best:
            if len(self._best) > _BEST_KEPT:
                self._best.clear()
            scenario = self._world.config.scenarios[place].name
            at_us = self._world.start_us + int(day * DAY_US)
            _, relevance = self._truth.best(user, scenario, at_us, length)
            seen = self._truth.examination(np.arange(len(relevance)), scenario)
            self._best[key] = float((seen * relevance).sum())
        return self._best[key]


def _events(
    listed: Sequence[str], about: Mapping[str, Any], done: Reactions
) -> Iterator[LaterEvent]:
    """Each has an id of its own, so that sending it twice does no harm."""

    def event(number: int, kind: str, position: int, more: Mapping[str, Any]) -> dict[str, Any]:
        name = f"{about['request_id']}/{number}"
        place = {"item_id": listed[position], "position": position}
        return {"event_id": name, "kind": kind, **place, **about, **more}

    for position in range(len(listed)):
        yield LaterEvent(0.0, event(position, "impression", position, {}))
    rows = zip(
        done.positions.tolist(), done.kinds.tolist(), done.delays_us.tolist(),
        done.values.tolist(), strict=True,
    )  # fmt: skip
    for number, (position, kind, delay_us, value) in enumerate(rows, len(listed)):
        more = {} if np.isnan(value) else {"value": value}
        yield LaterEvent(delay_us / 1e6, event(number, REACTIONS[kind], position, more))


def _tokens(attributes: Mapping[str, Any]) -> list[str]:
    """What the attributes say, one token a value; numbers say little and are left out."""
    tokens = []
    for name, value in sorted(attributes.items()):
        values = value if isinstance(value, list) else [value]
        tokens += [f"{name}={one}" for one in values if isinstance(one, str)]
    return tokens
