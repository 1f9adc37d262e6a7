"""The choice model: what a person shown a list sees, clicks, watches, keeps and buys.

P(click) = P(seen | position, scenario) * P(click | seen). What follows a click is drawn by other
functions than the click itself, so that those who click are no fair sample of those who would
buy: watch fraction, then action (wish or cart), then buy, as in ESM2 (Wen et al., SIGIR 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from streaming.sources.chance import Bools, Floats, Ints
from streaming.sources.population import Interests, Items, Users

_FLOOR, _TYPICAL = 0.02, 0.2  # of taste: what nobody is after still has a little of it
REACTIONS = ("click", "watch", "like", "wish", "cart", "buy")
WATCH_NOTHING = 0.1  # who leaves an item before this fraction was disappointed


@dataclass(frozen=True)
class Scenario:
    """One place where lists are shown.

    `share` of the requests come here from `from_day` on. Place p (0 is the top) of its `length`
    places is seen with probability (p + 1) ** -`decay`. `appeal` is added to the logit of a
    click. `focus` is how far the list is looked at with one interest in mind. A `searched` one
    begins with a query, which the logging policy knows.
    """

    name: str
    share: PositiveFloat
    length: PositiveInt = 10
    decay: NonNegativeFloat = 0.7
    appeal: float = 0.0
    focus: float = 0.3
    from_day: NonNegativeFloat = 0.0
    searched: bool = False


SCENARIOS = (
    Scenario("home", 0.55),
    Scenario("search", 0.2, decay=0.5, appeal=0.4, focus=0.95, searched=True),
    Scenario("similar", 0.15, length=6, decay=0.4, focus=0.7),
    Scenario("channel:deals", 0.07, decay=0.9, appeal=-0.2),
    Scenario("channel:new", 0.03, length=5, decay=1.0, appeal=-0.4, from_day=10.0),
)


@dataclass(frozen=True)
class ChoiceConfig:
    """The strengths of the model's parts, on logits unless said otherwise.

    `sharpness` says how near an item must lie to an interest. `contrast` is what a list whose
    other items are liked less adds to a click, `redundancy` what likeness to the item above takes
    away. `again` is the probability of a second click, `like` of a like for a whole watch;
    `worth` is what taste adds to an action and to a purchase, `taste` what it adds to a click;
    `longest_delay_days` bounds how late a purchase may come.
    """

    sharpness: PositiveFloat = 5.0
    click: float = -1.4
    taste: float = 1.0
    allure: float = 0.5
    eagerness: float = 0.4
    contrast: float = 0.3
    redundancy: float = 0.8
    watch: float = 0.3
    action: float = -1.6
    buy_after_action: float = -0.6
    buy_at_once: float = -4.0
    worth: float = 0.6
    quality: float = 0.7
    resolve: float = 0.6
    price: float = 0.7
    again: float = 0.03
    like: float = 0.25
    longest_delay_days: PositiveFloat = 7.0


@dataclass(frozen=True, slots=True)
class Pairs:
    """All that the model needs of a user with an item, each an array of one common shape.

    `taste` is centred, on a logarithmic scale; `strain` is how far the price is above the user's
    means, never negative.
    """

    taste: Floats
    allure: Floats
    quality: Floats
    eagerness: Floats
    resolve: Floats
    strain: Floats
    appeal: Floats
    context: Floats

    def at(self, *place: Ints) -> Pairs:
        """The pairs at these places."""
        return Pairs(*(getattr(self, f.name)[place] for f in dataclasses.fields(self)))


class Choice:
    """The probabilities. Scenarios are meant by their place in `scenarios`."""

    def __init__(self, config: ChoiceConfig, scenarios: Sequence[Scenario]) -> None:
        self.config = config
        self.scenarios = tuple(scenarios)
        self._decay = np.array([s.decay for s in scenarios])
        self._appeal = np.array([s.appeal for s in scenarios])
        self.focus = np.array([s.focus for s in scenarios])
        self.lengths = np.array([s.length for s in scenarios])

    def examination(self, positions: Ints, scenarios: Ints) -> Floats:
        """P(seen | position, scenario); 0 for a place that the scenario does not have."""
        seen = (positions + 1.0) ** -self._decay[scenarios]
        return np.where(positions < self.lengths[scenarios], seen, 0.0)

    def pairs(self, users: Users, interests: Interests, items: Items, scenarios: Ints) -> Pairs:
        """Each user (n,) with each of its items (n, m), without regard to the items around."""
        near = interests.vectors @ np.swapaxes(items.vector, 1, 2)  # (n, k, m)
        match = np.exp(self.config.sharpness * (near - 1))
        taste = (interests.weights[:, None, :] @ match)[:, 0, :]
        shape = taste.shape

        def spread(of_user: Floats) -> Floats:
            return np.broadcast_to(of_user[:, None], shape)

        return Pairs(
            np.log((taste + _FLOOR) / (_TYPICAL + _FLOOR)), items.allure, items.quality,
            spread(users.eagerness), spread(users.resolve),
            np.maximum(items.price_level - users.means[:, None], 0.0),
            spread(self._appeal[scenarios]), np.zeros(shape),
        )  # fmt: skip

    def in_lists(self, pairs: Pairs, items: Items, shown: Bools) -> Pairs:
        """The same with the context: rows are lists, their columns the positions.

        `shown` is False where a list has ended.
        """
        c = self.config
        taste = np.where(shown, pairs.taste, 0.0)
        others = np.maximum(shown.sum(axis=1, keepdims=True) - 1, 1)
        mean = (taste.sum(axis=1, keepdims=True) - taste) / others
        contrast = np.where(shown.sum(axis=1, keepdims=True) > 1, pairs.taste - mean, 0.0)
        alike = np.zeros(shown.shape)
        alike[:, 1:] = np.maximum((items.vector[:, 1:] * items.vector[:, :-1]).sum(axis=2), 0.0)
        return dataclasses.replace(pairs, context=c.contrast * contrast - c.redundancy * alike)

    def click(self, pairs: Pairs) -> Floats:
        """P(click | seen): relevance."""
        c = self.config
        return _sigmoid(
            c.click + c.taste * pairs.taste + c.allure * pairs.allure
            + c.eagerness * pairs.eagerness + pairs.appeal + pairs.context
        )  # fmt: skip

    def watched(self, pairs: Pairs) -> Floats:
        """The mean of the fraction watched after a click; it follows a power of a uniform draw."""
        c = self.config
        return _sigmoid(c.watch + 0.6 * c.taste * pairs.taste + c.quality * pairs.quality)

    def action(self, pairs: Pairs) -> Floats:
        """P(wish or cart | click)."""
        return _sigmoid(self.config.action + self._worth(pairs))

    def buy(self, pairs: Pairs, acted: Bools) -> Floats:
        """P(buy | click, whether it was acted upon)."""
        c = self.config
        start = np.where(acted, c.buy_after_action, c.buy_at_once)
        return _sigmoid(start + self._worth(pairs) - c.price * pairs.strain)

    def conversion(self, pairs: Pairs) -> Floats:
        """P(buy | click), by both ways."""
        action = self.action(pairs)
        yes = np.ones(action.shape, dtype=bool)
        return action * self.buy(pairs, yes) + (1 - action) * self.buy(pairs, ~yes)

    def over_interests(
        self, ask: Callable[[Pairs], Floats], users: Users, interests: Interests, items: Items,
        scenarios: Ints,
    ) -> Floats:  # fmt: skip
        """The mean of an answer over what users may have in mind, by the weights of interests."""
        mean = np.zeros(items.number.shape)
        for slot in range(interests.weights.shape[1]):
            mind = interests.focused(np.full(len(scenarios), slot), self.focus[scenarios])
            weight = interests.weights[:, slot, None]
            mean += weight * ask(self.pairs(users, mind, items, scenarios))
        return mean

    def _worth(self, pairs: Pairs) -> Floats:
        c = self.config
        return (
            c.worth * pairs.taste + c.quality * pairs.quality + c.resolve * pairs.resolve
            - c.price * pairs.strain
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reactions:
    """What people did with lists: rows are (list, position, kind, delay since the list, value).

    A kind is a place in `REACTIONS`; a value is NaN where the kind has none. `bounced` says of
    each list whether somebody clicked and was disappointed.
    """

    lists: Ints
    positions: Ints
    kinds: Ints
    delays_us: Ints
    values: Floats
    bounced: Bools


def react(
    choice: Choice, pairs: Pairs, items: Items, probabilities: Floats, rng: np.random.Generator
) -> Reactions:
    """Draws what happens to lists; `probabilities` (n, m) of a click, 0 where nothing is shown."""
    lists, positions = np.nonzero(rng.random(probabilities.shape) < probabilities)
    clicked = pairs.at(lists, positions)
    seen = items.take((lists, positions))
    count = len(lists)
    mean = np.clip(choice.watched(clicked), 1e-6, 1 - 1e-6)
    fraction = rng.random(count) ** ((1 - mean) / mean)
    acted = rng.random(count) < choice.action(clicked)
    bought = rng.random(count) < choice.buy(clicked, acted)
    into_cart = rng.random(count) < 0.6
    limit_s = choice.config.longest_delay_days * 86_400
    click_s = np.minimum(1.5 * (positions + 1) + rng.exponential(3.0, count), limit_s)
    watch_s = np.minimum(click_s + 1 + fraction * seen.length_s, limit_s)
    action_s = np.minimum(click_s + _lognormal_s(rng, 240.0, 1.0, count), limit_s)
    after_s = np.where(acted, action_s, click_s)
    buy_s = np.minimum(after_s + _lognormal_s(rng, 10_800.0, 1.6, count), limit_s)
    again_s = np.minimum(click_s + _lognormal_s(rng, 120.0, 1.0, count), limit_s)
    liked = rng.random(count) < choice.config.like * fraction
    again = rng.random(count) < choice.config.again
    every, nothing = np.ones(count, dtype=bool), np.full(count, np.nan)
    parts = [
        ("click", every, click_s, nothing),
        ("watch", every, watch_s, fraction),
        ("like", liked, watch_s + 2, nothing),
        ("cart", acted & into_cart, action_s, nothing),
        ("wish", acted & ~into_cart, action_s, nothing),
        ("buy", bought, buy_s, seen.price),
        ("click", again, again_s, nothing),
    ]
    bounced = np.zeros(len(probabilities), dtype=bool)
    bounced[lists[fraction < WATCH_NOTHING]] = True
    return Reactions(
        np.concatenate([lists[which] for _, which, _, _ in parts]),
        np.concatenate([positions[which] for _, which, _, _ in parts]),
        np.repeat(
            [REACTIONS.index(kind) for kind, *_ in parts],
            [int(which.sum()) for _, which, _, _ in parts],
        ),
        (1e6 * np.concatenate([s[which] for _, which, s, _ in parts])).astype(np.int64),
        np.concatenate([value[which] for _, which, _, value in parts]),
        bounced,
    )


def _lognormal_s(rng: np.random.Generator, median_s: float, sigma: float, size: int) -> Floats:
    return rng.lognormal(np.log(median_s), sigma, size)


def _sigmoid(logit: Floats) -> Floats:
    probability: Floats = 1 / (1 + np.exp(-logit))
    return probability
