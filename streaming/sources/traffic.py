"""Who comes to the planted world when and where, and what the logging policy shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from streaming.sources.chance import Bools, Floats, Ints, picked, uniform
from streaming.sources.choice import Scenario
from streaming.sources.population import Interests, Population

POLICIES = ("random", "popular", "ranked")
_SPARE = 6  # candidates drawn beyond the length of a list, in place of repeats
_LONGEST_SESSION = 8
_GRID = 65  # points in a block at which the rhythm is looked up


@dataclass(frozen=True)
class TrafficConfig:
    """How often people come. A session has `requests` requests on average, `gap_s` apart.

    `leave` is the probability that a disappointed visitor leaves. Beside what is shown, a
    session has a `search` of its own, without a list, and an `organic` action with these
    probabilities; a purchase is repeated with `rebuy`. Of all searches a share is `suggested`:
    half of these stray to any topic, and `suggested_popular` of them are for what is popular,
    whoever they are shown to.
    """

    sessions_per_user_day: PositiveFloat = 0.4
    requests: PositiveFloat = 2.0
    gap_s: PositiveFloat = 90.0
    leave: NonNegativeFloat = 0.5
    search: NonNegativeFloat = 0.15
    suggested: NonNegativeFloat = 0.3
    suggested_popular: NonNegativeFloat = 0.0
    organic: NonNegativeFloat = 0.1
    rebuy: NonNegativeFloat = 0.05


@dataclass(frozen=True)
class PolicyConfig:
    """What is shown. A request's list comes by `random`, by `popular`, or else is ranked.

    The first two draw without repeats, place after place, with the logged propensity: uniformly
    from the living items, or by their popularity. A ranked list has items of the user's topics,
    but for a share `stray` of them, ordered by taste with `noise` on its logarithm; it logs no
    propensity.
    """

    random: NonNegativeFloat = 0.05
    popular: NonNegativeFloat = 0.05
    stray: NonNegativeFloat = 0.3
    noise: NonNegativeFloat = 0.7


class Stock:
    """Everybody who lives on one day, and the sums that draws need."""

    def __init__(self, population: Population, day: int) -> None:
        self.users = population.users(population.user_lives.living(day, day + 1))
        self.items = population.items(population.item_lives.living(day, day + 1))
        self.activity = np.cumsum(self.users.activity)
        self.popularity = population.popularity(self.items, day)
        self.cumulative = np.cumsum(self.popularity)
        self.by_topic = np.argsort(self.items.topic, kind="stable")
        self._topic_sums = np.cumsum(self.popularity[self.by_topic])
        topics = np.arange(population.config.topics + 1)
        ends = np.searchsorted(self.items.topic[self.by_topic], topics)
        self._topic_limits = np.concatenate([[0.0], self._topic_sums])[ends]

    def of_topics(self, topics: Ints, drawn: Floats) -> Ints:
        """A popular item of each topic, by its row."""
        low, high = self._topic_limits[topics], self._topic_limits[topics + 1]
        places = np.searchsorted(self._topic_sums, low + drawn * (high - low), side="right")
        rows: Ints = self.by_topic[np.minimum(places, len(self.by_topic) - 1)]
        return rows

    def living(self, weights: Floats, days: Floats) -> Floats:
        """The sum of the weights of the items that live at each time."""
        return _reached(self.items.born, weights, days) - _reached(self.items.gone, weights, days)


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in the order of sessions: when, whose, where, and with which interest in mind.

    `session` counts within the block, `ordinal` within the session; `user` is a row of the
    stock; `slot` is a column of `interests`.
    """

    session: Ints
    ordinal: Ints
    day: Floats
    user: Ints
    scenario: Ints
    slot: Ints
    interests: Interests


@dataclass(frozen=True, slots=True)
class Lists:
    """What is shown: rows of the stock's items, `shown` False where a list has ended.

    `propensity` is that of the item at its place, given those above it; NaN for ranked lists.
    """

    items: Ints
    shown: Bools
    policy: Ints
    propensity: Floats


class Traffic:
    """Draws requests and their lists, from a generator that belongs to the block."""

    def __init__(
        self,
        population: Population,
        scenarios: Sequence[Scenario],
        traffic: TrafficConfig,
        policy: PolicyConfig,
    ) -> None:
        self._population = population
        self._scenarios = scenarios
        self._config = traffic
        self._policy = policy
        self._shares = np.cumsum([s.share for s in scenarios])
        self._from_day = np.array([s.from_day for s in scenarios])
        self._lengths = np.array([s.length for s in scenarios])
        self.searched = np.array([s.searched for s in scenarios])

    def requests(
        self, block: int, days: tuple[float, float], stock: Stock, rng: np.random.Generator
    ) -> Requests:
        """The requests of all sessions that begin in a block, which lies between two times."""
        c = self._config
        begun = _rhythmic_times(c.sessions_per_user_day * len(stock.users.number), days, rng)
        user = picked(stock.activity, rng.random(len(begun)))
        lives = (stock.users.born[user] <= begun) & (begun < stock.users.gone[user])
        begun, user = begun[lives], user[lives]
        sizes = np.minimum(rng.geometric(1 / max(c.requests, 1.0), len(begun)), _LONGEST_SESSION)
        session = np.repeat(np.arange(len(begun)), sizes)
        ordinal = np.arange(len(session)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        gaps = (5 + rng.exponential(c.gap_s, len(session))) / 86_400
        waited = np.cumsum(gaps)
        day = begun[session] + waited - np.repeat(waited[np.cumsum(sizes) - sizes], sizes)
        scenario = picked(self._shares, rng.random(len(session)))
        # Who would come to a place that is not open yet comes to the first one.
        scenario = np.where(day < self._from_day[scenario], 0, scenario)
        interests = self._population.interests(stock.users.take(user[session]), day)
        slot = self.focus(block, session, interests)
        return Requests(session, ordinal, day, user[session], scenario, slot, interests)

    def focus(self, block: int | Ints, session: Ints, interests: Interests) -> Ints:
        """Which interest a session is about, drawn by the weights; one draw for a session."""
        drawn = uniform(self._population.seed, "focus", block, session)
        past: Ints = (np.cumsum(interests.weights, axis=1) <= drawn[:, None]).sum(axis=1)
        held: Ints = (interests.weights > 0).sum(axis=1)
        return np.minimum(past, held - 1, dtype=np.int64)

    def lists(self, requests: Requests, stock: Stock, rng: np.random.Generator) -> Lists:
        """One list for each request."""
        count, longest = len(requests.day), int(self._lengths.max())
        policy = picked(self._policy_weights, rng.random(count))
        drawn = self._candidates(requests, policy, stock, longest + _SPARE, rng)
        day = requests.day[:, None]
        usable = (stock.items.born[drawn] <= day) & (day < stock.items.gone[drawn])
        same = drawn[:, :, None] == drawn[:, None, :]
        usable &= ~np.tril(same, -1).any(axis=2)
        # Skipping the repeats of independent draws is drawing without replacement.
        order = np.argsort(~usable, axis=1, kind="stable")[:, :longest]
        items = np.take_along_axis(drawn, order, axis=1)
        usable = np.take_along_axis(usable, order, axis=1)
        shown = usable & (np.arange(longest) < self._lengths[requests.scenario][:, None])
        ranked = np.flatnonzero(policy == POLICIES.index("ranked"))
        items[ranked] = self._ranked(requests, ranked, items[ranked], shown[ranked], stock, rng)
        propensity = np.full(items.shape, np.nan)
        for name, weights in (
            ("random", np.ones(len(stock.popularity))), ("popular", stock.popularity)
        ):  # fmt: skip
            rows = np.flatnonzero(policy == POLICIES.index(name))
            share = weights[items[rows]] / stock.living(weights, requests.day[rows])[:, None]
            above = np.cumsum(share, axis=1) - share
            propensity[rows] = share / (1 - above)
        return Lists(items, shown, policy, propensity)

    @property
    def _policy_weights(self) -> Floats:
        p = self._policy
        return np.cumsum([p.random, p.popular, max(1 - p.random - p.popular, 0.0)])

    def _candidates(
        self, requests: Requests, policy: Ints, stock: Stock, width: int, rng: np.random.Generator
    ) -> Ints:
        """Independent draws by the policy of each request, as rows of the stock's items."""
        shape = (len(policy), width)
        drawn, chance = rng.random(shape), rng.random(shape)
        weights = requests.interests.weights
        slots = (np.cumsum(weights, axis=1)[:, None, :] <= chance[..., None]).sum(axis=2)
        slots = np.minimum(slots, (weights > 0).sum(axis=1)[:, None] - 1)
        asked = self.searched[requests.scenario][:, None]  # the query says which interest it is
        slots = np.where(asked, requests.slot[:, None], slots)
        topics = np.take_along_axis(requests.interests.topics, slots, axis=1)
        stray = rng.random(shape) < self._policy.stray
        any_topic = picked(self._population.topic_weights, rng.random(shape))
        topics = np.where(stray, any_topic, topics)
        found = stock.of_topics(topics, drawn)
        column = policy[:, None]
        uniformly = np.minimum((drawn * len(stock.popularity)).astype(np.int64),
                               len(stock.popularity) - 1)  # fmt: skip
        found = np.where(column == POLICIES.index("random"), uniformly, found)
        popularly = picked(stock.cumulative, drawn)
        return np.where(column == POLICIES.index("popular"), popularly, found)

    def _ranked(
        self, requests: Requests, rows: Ints, items: Ints, shown: Bools, stock: Stock,
        rng: np.random.Generator,
    ) -> Ints:  # fmt: skip
        """The lists of these requests, best first by what the policy takes for their taste."""
        interests = requests.interests
        near = interests.vectors[rows] @ np.swapaxes(stock.items.vector[items], 1, 2)
        taste = (interests.weights[rows][:, None, :] @ np.exp(5 * (near - 1)))[:, 0, :]
        believed = np.log(taste + 0.02) + self._policy.noise * rng.standard_normal(taste.shape)
        order = np.argsort(np.where(shown, -believed, np.inf), axis=1, kind="stable")
        return np.take_along_axis(items, order, axis=1)


def rhythm(days: Floats) -> Floats:
    """How much of the traffic comes at a time: evenings and weekends have more; its mean is 1."""
    daily = 1 + 0.7 * np.cos(2 * np.pi * (days - 20.5 / 24))
    weekly = np.where(np.floor(days) % 7 >= 5, 1.3, 0.88)
    return daily * weekly


def _rhythmic_times(per_day: float, days: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Sorted times of a Poisson process between two times of one day, by the rhythm."""
    grid = np.linspace(*days, _GRID)
    # The weekly part jumps at midnight, which is the end of a block, not a point inside it.
    height = rhythm(np.minimum(grid, np.nextafter(days[1], 0)))
    reached = np.concatenate([[0.0], np.cumsum((height[1:] + height[:-1]) / 2 * np.diff(grid))])
    count = rng.poisson(per_day * reached[-1])
    times: Floats = np.interp(np.sort(rng.random(count)) * reached[-1], reached, grid)
    return times


def _reached(times: Floats, weights: Floats, days: Floats) -> Floats:
    """The sum of the weights whose time has come at each of the days."""
    order = np.argsort(times)
    sums = np.concatenate([[0.0], np.cumsum(weights[order])])
    return sums[np.searchsorted(times[order], days, side="right")]
