"""The truth of a planted world: the probabilities behind its events, at any time.

Users and items are numbers: `u12` is 12 (see `numbers`). Questions are vectors: users, items and
times are broadcast to one length, and so are the answers; times are µs since 1970. A scenario is
meant by its name. What a session has in mind is hidden, so answers are the mean over a user's
interests by their weights, unless `slots` from `focus` say which one it was. Ask with slots where
the list depended on it: in a searched scenario the policy knows the query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from streaming.errors import ConfigError
from streaming.sources.chance import Floats, Ints
from streaming.sources.choice import Pairs
from streaming.sources.population import Interests, Items, Users
from streaming.sources.world import World

_PAIRS_AT_ONCE = 200_000


class Truth:
    """Answers about one world; nothing here changes it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._choice = world.choice
        self._names = [s.name for s in world.config.scenarios]

    # -- once shown ------------------------------------------------------------------------

    def examination(self, positions: Ints | int, scenario: str) -> Floats:
        """P(seen | position, scenario)."""
        places = np.atleast_1d(np.asarray(positions, np.int64))
        return self._choice.examination(places, np.full(places.shape, self._scenario(scenario)))

    def relevance(
        self, users: Ints, items: Ints, scenario: str, at_us: int | Ints, slots: Ints | None = None
    ) -> Floats:
        """P(click | seen), in a list that neither adds nor takes away: of one item alone."""
        return self._mean(self._choice.click, users, items, scenario, at_us, slots)

    def click_probability(
        self, users: Ints, items: Ints, positions: Ints | int, scenario: str, at_us: int | Ints
    ) -> Floats:
        """P(seen) * P(click | seen), without regard to the items around."""
        seen = self.examination(positions, scenario)
        return seen * self.relevance(users, items, scenario, at_us)

    def clicks_in_lists(
        self, users: Ints, lists: Ints, scenario: str, at_us: int | Ints, slots: Ints | None = None
    ) -> Floats:
        """P(click) of each place of whole lists (n, m), with the items around; -1 is no item."""
        shown = lists >= 0
        code = self._scenario(scenario)
        seen = self.examination(np.arange(lists.shape[1]), scenario) * shown
        items = self._world.population.items(np.maximum(lists, 0).ravel())
        items = items.take((np.arange(lists.size).reshape(lists.shape),))

        def click(pairs: Pairs) -> Floats:
            return seen * self._choice.click(self._choice.in_lists(pairs, items, shown))

        return self._over_focus(click, *self._people(users, at_us, len(lists)), items, code, slots)

    def expected_clicks(self, users: Ints, lists: Ints, scenario: str, at_us: int | Ints) -> Floats:
        """How many clicks each list (n, m) gets on average."""
        clicks: Floats = self.clicks_in_lists(users, lists, scenario, at_us).sum(axis=1)
        return clicks

    # -- once clicked ----------------------------------------------------------------------

    def conversion_probability(
        self, users: Ints, items: Ints, scenario: str, at_us: int | Ints, slots: Ints | None = None
    ) -> Floats:
        """P(buy | click): a repeated purchase counts once."""
        return self._after_click(self._choice.conversion, users, items, scenario, at_us, slots)

    def action_probability(
        self, users: Ints, items: Ints, scenario: str, at_us: int | Ints, slots: Ints | None = None
    ) -> Floats:
        """P(wish or cart | click)."""
        return self._after_click(self._choice.action, users, items, scenario, at_us, slots)

    def watch_fraction(
        self, users: Ints, items: Ints, scenario: str, at_us: int | Ints, slots: Ints | None = None
    ) -> Floats:
        """The mean of the fraction watched after a click."""
        return self._after_click(self._choice.watched, users, items, scenario, at_us, slots)

    # -- who and what ----------------------------------------------------------------------

    def interests(self, users: Ints, at_us: int | Ints) -> Interests:
        """Topics, weights (which sum to 1) and vectors of what users are after."""
        return self._people(users, at_us, 1)[1]

    def focus(self, request_ids: Sequence[str], users: Ints, at_us: int | Ints) -> Ints:
        """Which column of `interests` each request had in mind; times are the impressions'."""
        parts = np.array([id_.split("/")[1:3] for id_ in request_ids], np.int64).reshape(-1, 2)
        interests = self.interests(users, at_us)
        return self._world.traffic.focus(parts[:, 0], parts[:, 1], interests)

    def living(self, at_us: int) -> Ints:
        """The items that live at a time."""
        day = float(self._world.days_at(at_us)[0])
        return self._world.population.item_lives.living(day, np.nextafter(day, np.inf))

    def best(self, user: int, scenario: str, at_us: int, count: int = 10) -> tuple[Ints, Floats]:
        """The living items most relevant to a user, best first, and their relevance."""
        items = self.living(at_us)
        relevance = self.relevance(np.array([user]), items, scenario, at_us)
        order = np.argsort(-relevance, kind="stable")[:count]
        return items[order], relevance[order]

    def propensity(self, policy: str, items: Ints, at_us: int) -> Floats:
        """P(the top place shows the item) by the policy `random` or `popular`."""
        day = float(self._world.days_at(at_us)[0])
        stock = self._world.stock(int(day))
        if policy not in ("random", "popular"):
            raise ConfigError(f"policy {policy!r} has no known propensity: random and popular have")
        weights = np.ones(len(stock.popularity)) if policy == "random" else stock.popularity
        alive = (stock.items.born <= day) & (day < stock.items.gone)
        known = dict(zip(stock.items.number[alive].tolist(), weights[alive].tolist(), strict=True))
        total = float(stock.living(weights, np.array([day]))[0])
        return np.array([known.get(item, 0.0) / total for item in items.tolist()])

    # -- the mean over what a session may have in mind ---------------------------------------

    def _mean(
        self, ask: Callable[[Pairs], Floats], users: Ints, items: Ints, scenario: str,
        at_us: int | Ints, slots: Ints | None,
    ) -> Floats:  # fmt: skip
        users, items, at = np.broadcast_arrays(users, items, np.asarray(at_us, np.int64))
        code = self._scenario(scenario)
        answers = []
        for begin in range(0, len(users), _PAIRS_AT_ONCE):
            part = slice(begin, begin + _PAIRS_AT_ONCE)
            traits = self._world.population.items(items[part])
            traits = traits.take((np.arange(len(traits.number))[:, None],))
            people, interests = self._people(users[part], at[part], 1)
            chosen = None if slots is None else slots[part]
            answer = self._over_focus(ask, people, interests, traits, code, chosen)
            answers.append(answer[:, 0])
        return np.concatenate(answers) if answers else np.empty(0)

    def _after_click(
        self, ask: Callable[[Pairs], Floats], users: Ints, items: Ints, scenario: str,
        at_us: int | Ints, slots: Ints | None,
    ) -> Floats:  # fmt: skip
        """The mean among those who click: a click tells something of what they had in mind."""

        def both(pairs: Pairs) -> Floats:
            return self._choice.click(pairs) * ask(pairs)

        asked = (users, items, scenario, at_us, slots)
        return self._mean(both, *asked) / self._mean(self._choice.click, *asked)

    def _over_focus(
        self, ask: Callable[[Pairs], Floats], users: Users, interests: Interests, items: Items,
        code: int, slots: Ints | None,
    ) -> Floats:  # fmt: skip
        codes = np.full(len(users.number), code)
        if slots is None:
            return self._choice.over_interests(ask, users, interests, items, codes)
        mind = interests.focused(slots, self._choice.focus[codes])
        return ask(self._choice.pairs(users, mind, items, codes))

    def _people(self, users: Ints, at_us: int | Ints, least: int) -> tuple[Users, Interests]:
        users, at = np.broadcast_arrays(np.atleast_1d(users), np.asarray(at_us, np.int64))
        if len(users) < least:
            users, at = np.repeat(users, least), np.repeat(at, least)
        people = self._world.population.users(users)
        return people, self._world.population.interests(people, self._world.days_at(at))

    def _scenario(self, name: str) -> int:
        if name not in self._names:
            raise ConfigError(f"scenario {name!r} is not there; known are {', '.join(self._names)}")
        return self._names.index(name)


def numbers(ids: Sequence[str]) -> Ints:
    """The numbers of users or items of a world by their ids.

    >>> numbers(["u12", "u7"]).tolist()
    [12, 7]
    """
    return np.array([int(one[1:]) for one in ids], np.int64)
