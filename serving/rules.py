"""Rules: the last word on the order of an answer, whatever was expected of its items.

A rule is given the candidates, best first, and says in which order they stand instead. It drops
nothing: what it does not want at the top it puts further down, so that no answer gets shorter.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from features.batch import Ids

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RulesConfig:
    """How answers are put in order after their items were scored.

    Scores of items with a value named in `boosts` ("field=value") are multiplied by its number.
    `varied` trades score for variety, from 0 (none of it) to 1 (nothing else): the items that stand
    above an item count against it as far as they are like it. Of any `window` items in a row at
    most `at_most[field]` have one value of that field. Rules look at the best `considered`
    candidates, and at least at as many as are wanted.
    """

    boosts: Mapping[str, PositiveFloat] = field(default_factory=dict)
    varied: NonNegativeFloat = 0.0
    at_most: Mapping[str, PositiveInt] = field(default_factory=dict)
    window: PositiveInt = 10
    considered: PositiveInt = 100

    def __post_init__(self) -> None:
        if self.varied > 1:
            raise ValueError(f"varied = {self.varied}: a number from 0 to 1")
        for name in self.boosts:
            if "=" not in name:
                raise ValueError(f"boosts.{name}: name a field and a value, such as genres=Comedy")


@dataclass(frozen=True, slots=True)
class Slate:
    """The n candidates that rules put in order, best first: `scores` (n,), above 0 where anything
    is expected of them, and on demand their attributes and their unit vectors (n, d), zero for an
    item that has none.
    """

    items: Ids
    scores: Floats
    attributes: Callable[[], Sequence[Mapping[str, Any]]]
    vectors: Callable[[], NDArray[np.float32]]


Rule = Callable[[Slate, int], Ids]  # the best so many of them are shown; all places, in order


def all_rules(config: RulesConfig) -> dict[str, Rule]:
    """The rules that a recipe asks for, in the order in which they are applied."""
    rules: dict[str, Rule] = {}
    if config.boosts:
        rules["boosts"] = boosted(config.boosts)
    if config.varied > 0:
        rules["varied"] = varied(config.varied)
    for name, most in config.at_most.items():
        rules[f"at_most.{name}"] = at_most(name, most, config.window)
    return rules


def boosted(boosts: Mapping[str, float]) -> Rule:
    """Multiplies the scores of items that have certain values."""

    def rule(slate: Slate, _shown: int) -> Ids:
        factors = [
            np.prod([boosts.get(name, 1.0) for name in _names(one)]) for one in slate.attributes()
        ]
        return np.argsort(-slate.scores * np.array(factors), kind="stable")

    return rule


def varied(trade: float) -> Rule:
    """Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): the next item is the one
    with the most of `(1 - trade) * score - trade * likeness` to the nearest of those above it,
    where scores are parts of the best one.
    """

    def rule(slate: Slate, shown: int) -> Ids:
        vectors = slate.vectors()  # (n, d)
        worth = (1 - trade) * slate.scores / max(float(slate.scores.max(initial=0)), 1e-12)
        nearest = np.full(len(worth), -np.inf)
        order = []
        for _ in range(min(shown, len(worth))):
            against = trade * np.where(np.isfinite(nearest), nearest, 0)
            best = int(np.argmax(worth - against))
            order.append(best)
            worth[best] = -np.inf
            np.maximum(nearest, vectors @ vectors[best], out=nearest)
        return _and_the_rest(order, len(worth))

    return rule


def at_most(name: str, most: int, window: int) -> Rule:
    """Of any `window` items in a row `most` may share a value of one field; who would be one too
    many waits for the next place where he is not.
    """

    def rule(slate: Slate, shown: int) -> Ids:
        values = [_values(one.get(name)) for one in slate.attributes()]
        waiting, order = list(range(len(values))), list[int]()
        recent: deque[Sequence[str]] = deque(maxlen=window - 1)
        while waiting and len(order) < shown:
            there = Counter(value for above in recent for value in above)
            fit = (i for i in waiting if all(there[value] < most for value in values[i]))
            chosen = next(fit, waiting[0])  # if nobody fits, the best
            waiting.remove(chosen)
            order.append(chosen)
            recent.append(values[chosen])
        return _and_the_rest(order, len(values))

    return rule


def _and_the_rest(order: Sequence[int], count: int) -> Ids:
    """The chosen ones, and then the others as they stood."""
    rest = np.ones(count, bool)
    rest[list(order)] = False
    return np.concatenate([np.array(order, np.int64), np.flatnonzero(rest)])


def _names(attributes: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, found in attributes.items() for value in _values(found)]


def _values(found: Any) -> list[str]:
    if found is None:
        return []
    values = found if isinstance(found, list) else [found]
    return [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
