"""Who lives in the planted world, when, and what they are like: users, items and their topics.

Everything here is a pure function of the seed, a number and a time.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from streaming.sources.chance import Bools, Floats, Ints, normal, picked, uniform

AGES = ("under 18", "18-24", "25-34", "35-44", "45-54", "over 54")
GENDERS = ("f", "m")
CELLS = len(AGES) * len(GENDERS)
_AGE_WEIGHTS = np.cumsum([0.08, 0.18, 0.28, 0.22, 0.14, 0.1])
_SHORTEST_LIFE, _LONGEST_LIFE = 0.4, 1.6  # in mean lives
_FRESH_DAYS = 5.0

T = TypeVar("T", bound="Columns")


@dataclass(frozen=True)
class PopulationConfig:
    """How many there are, and how their tastes are made.

    `users` and `items` are how many live at a time; whoever leaves is replaced by a newcomer.
    Topics are directions in a space of `dimensions`, fewer than topics, so that no single vector
    stands for several interests. A user has 1 to `interests` of them at a time; each is given up
    for another after `drift_days` on average. `demographic` is the share of interests that are
    typical of the user's age and gender, `spread` how far entities lie from their topics, and
    `noise` how often a category, brand or word says nothing of the topic.
    """

    users: PositiveInt = 2_000
    items: PositiveInt = 2_000
    user_life_days: PositiveFloat = 200.0
    item_life_days: PositiveFloat = 60.0
    topics: PositiveInt = 32
    dimensions: PositiveInt = 8
    interests: PositiveInt = 4
    drift_days: PositiveFloat = 30.0
    demographic: float = 0.5
    spread: float = 0.5
    noise: float = 0.15


@dataclass(frozen=True, slots=True)
class Columns:
    """Arrays that describe the same entities, one row each."""

    number: Ints

    def take(self: T, rows: Ints | Bools | tuple[Ints, ...]) -> T:
        """Some of the rows; an index with several axes gives each array those axes."""
        return type(self)(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True)
class Users(Columns):
    """Traits of users. Times are days since the world's start.

    `activity` is heavy-tailed; `eagerness` to click, `resolve` to buy and `means` to pay are
    standard normal.
    """

    born: Floats
    gone: Floats
    cell: Ints
    activity: Floats
    eagerness: Floats
    resolve: Floats
    means: Floats


@dataclass(frozen=True, slots=True)
class Items(Columns):
    """Traits of items. `vector` (n, dimensions) has length 1; `price` is in money.

    `allure` makes a click, `quality` makes what follows, `price_level` is standard normal; the
    first two are correlated by -0.3: what is clicked is not what is bought.
    """

    born: Floats
    gone: Floats
    topic: Ints
    vector: Floats
    allure: Floats
    quality: Floats
    price_level: Floats
    price: Floats
    length_s: Floats
    appeal: Floats


@dataclass(frozen=True, slots=True)
class Interests:
    """What users are after at some time: `topics` and `weights` (n, k), `vectors` (n, k, d).

    Weights sum to 1; an interest that a user does not have has weight 0.
    """

    topics: Ints
    weights: Floats
    vectors: Floats

    def focused(self, slots: Ints, strength: Floats) -> Interests:
        """With the weight moved to one interest each, by `strength` (n,) from 0 to 1."""
        weights = self.weights * (1 - strength)[:, None]
        weights[np.arange(len(slots)), slots] += strength
        return Interests(self.topics, weights, self.vectors)


class Population:
    """All users and items that ever live, by their numbers, in the order of their births."""

    def __init__(self, seed: int, config: PopulationConfig) -> None:
        self.seed = seed
        self.config = config
        c = config
        self.user_lives = Lives(seed, "user", c.users, c.user_life_days)
        self.item_lives = Lives(seed, "item", c.items, c.item_life_days)
        numbers = np.arange(c.topics)
        self.centres = _unit(normal(seed, "topic", numbers[:, None], np.arange(c.dimensions)))
        self.topic_weights = np.cumsum(1 / (numbers + 3.0))  # some topics are larger than others
        popularity = np.diff(self.topic_weights, prepend=0.0)
        liking = -(np.log1p(-uniform(seed, "cell", np.arange(CELLS)[:, None], numbers)) ** 3)
        self._cell_weights = np.cumsum(np.abs(liking) * popularity, axis=1)

    def users(self, numbers: Ints) -> Users:
        """The users with these numbers."""
        s = self.seed
        born, gone = self.user_lives.of(numbers)
        age = picked(_AGE_WEIGHTS, uniform(s, "age", numbers))
        gender = (uniform(s, "gender", numbers) < 0.5).astype(np.int64)
        means = 0.8 * normal(s, "means", numbers) + 0.24 * (age - 2.5)
        return Users(
            numbers, born, gone, age * len(GENDERS) + gender,
            _heavy_tailed(uniform(s, "activity", numbers)),
            normal(s, "eagerness", numbers), normal(s, "resolve", numbers), means,
        )  # fmt: skip

    def items(self, numbers: Ints) -> Items:
        """The items with these numbers."""
        s, c = self.seed, self.config
        born, gone = self.item_lives.of(numbers)
        topic, second = self.item_topics(numbers)
        blend = 0.5 * (uniform(s, "blend", numbers) < 0.3)
        vector = self.centres[topic] + blend[:, None] * self.centres[second]
        quality = normal(s, "quality", numbers)
        level = normal(s, "price", numbers)
        return Items(
            numbers, born, gone, topic,
            _unit(vector + self.scattered("item", numbers[:, None], np.arange(c.dimensions))),
            0.954 * normal(s, "allure", numbers) - 0.3 * quality, quality,
            level, np.round(20 * np.exp(0.9 * level), 2),
            np.round(60 * np.exp(normal(s, "length", numbers) * 0.8 + 1.0)),
            _heavy_tailed(uniform(s, "appeal", numbers)),
        )  # fmt: skip

    def item_topics(self, numbers: Ints) -> tuple[Ints, Ints]:
        """The main topic of items, and the second one that some have a part of."""
        first = picked(self.topic_weights, uniform(self.seed, "main topic", numbers))
        return first, picked(self.topic_weights, uniform(self.seed, "second topic", numbers))

    def interests(self, users: Users, days: Floats) -> Interests:
        """What the users are after, each at its own time."""
        s, c = self.seed, self.config
        n, slots = users.number[:, None], np.arange(c.interests)
        held = slots < 1 + np.floor(c.interests * uniform(s, "held", n))
        # A slot's interest lasts for a period of its own; the offset keeps users out of step.
        period = c.drift_days * (0.5 + uniform(s, "period", n, slots))
        phase = np.floor(days[:, None] / period + uniform(s, "offset", n, slots)).astype(np.int64)
        topics = self._topic_drawn(users, n, slots, phase)
        swing = 2 * np.pi * (days[:, None] / (0.37 * period) + uniform(s, "swing", n, slots))
        raw = held * (0.3 + uniform(s, "weight", n, slots, phase)) * (1 + 0.4 * np.sin(swing))
        place = (n[..., None], slots[:, None], phase[..., None], np.arange(c.dimensions))
        vectors = _unit(self.centres[topics] + self.scattered("interest", *place))
        return Interests(topics, raw / raw.sum(axis=1, keepdims=True), vectors)

    def scattered(self, what: str, *counters: Ints) -> Floats:
        """How far entities lie from their topics; the last counter runs over the dimensions."""
        scale = self.config.spread / np.sqrt(self.config.dimensions)
        apart: Floats = scale * normal(self.seed, f"{what} vector", *counters)
        return apart

    def popularity(self, items: Items, day: float) -> Floats:
        """How much attention items get without regard to who looks; the young ones get more."""
        age = np.maximum(day - items.born, 0.0)
        return items.appeal * (0.3 + np.exp(-age / _FRESH_DAYS))

    def _topic_drawn(self, users: Users, n: Ints, slots: Ints, phase: Ints) -> Ints:
        own = picked(self.topic_weights, uniform(self.seed, "interest", n, slots, phase))
        drawn = uniform(self.seed, "typical interest", n, slots, phase)
        limits = self._cell_weights[users.cell]  # (n, topics)
        typical = (limits[:, None, :] <= (drawn * limits[:, -1:])[..., None]).sum(axis=2)
        is_typical = uniform(self.seed, "typical", n, slots, phase) < self.config.demographic
        return np.where(is_typical, np.minimum(typical, self.config.topics - 1), own)


class Lives:
    """Births and deaths that keep a population at its size, by number in the order of birth."""

    def __init__(self, seed: int, what: str, size: int, life_days: float) -> None:
        self._seed = seed
        self._what = what
        self._size = size
        self._life_days = life_days
        self._per_day = size / life_days

    def of(self, numbers: Ints) -> tuple[Floats, Floats]:
        """When these are born and gone, in days; the first `size` were born before the start."""
        shares = uniform(self._seed, f"{self._what} life", numbers)
        life = self._life_days * (_SHORTEST_LIFE + (_LONGEST_LIFE - _SHORTEST_LIFE) * shares)
        drawn = uniform(self._seed, f"{self._what} birth", numbers)
        born = np.where(
            numbers < self._size, -drawn * life, (numbers - self._size + drawn) / self._per_day
        )
        return born, born + life

    def living(self, from_day: float, to_day: float) -> Ints:
        """The numbers of those who live at some time from one day to another."""
        oldest = from_day - _LONGEST_LIFE * self._life_days
        first = 0 if oldest < 0 else self._size + int(oldest * self._per_day)
        numbers = np.arange(first, self._size + int(to_day * self._per_day) + 1)
        born, gone = self.of(numbers)
        return numbers[(born < to_day) & (gone > from_day)]

    def announced(self, from_day: float, to_day: float) -> tuple[Ints, Floats]:
        """Who becomes known within [from_day, to_day), and when: at birth, or at the start."""
        first = 0 if from_day <= 0 else self._size + int(from_day * self._per_day)
        numbers = np.arange(first, self._size + int(to_day * self._per_day) + 1)
        known = np.maximum(self.of(numbers)[0], 0.0)
        kept = (known >= from_day) & (known < to_day)
        return numbers[kept], known[kept]


def _unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def _heavy_tailed(drawn: Floats) -> Floats:
    """Pareto's distribution with exponent 1.3, cut at 100 times the least."""
    weights: Floats = np.minimum((1 - drawn) ** (-1 / 1.3), 100.0)
    return weights
