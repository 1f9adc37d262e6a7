"""The planted world: an endless, reproducible stream of events whose truth can be asked.

Users with several drifting interests visit scenarios, are shown lists by a logging policy, and
react by the choice model. The stream is made in blocks of time; each is drawn from a generator of
its own, so any part can be made without the rest. What happens late waits for its block.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import NonNegativeInt, PositiveInt

from streaming.errors import ConfigError
from streaming.ids import stable_id
from streaming.settings import fill
from streaming.sources.chance import Bools, Floats, Ints, picked, uniform
from streaming.sources.choice import SCENARIOS, Choice, ChoiceConfig, Scenario, react
from streaming.sources.descriptions import Descriptions
from streaming.sources.happened import (
    HAPPENED,
    KINDS,
    NO_NOTE,
    SUGGESTED,
    EventWriter,
    Happened,
    happened_rows,
)
from streaming.sources.population import Population, PopulationConfig
from streaming.sources.source import SourceInfo
from streaming.sources.traffic import (
    Lists,
    PolicyConfig,
    Requests,
    Stock,
    Traffic,
    TrafficConfig,
)

DAY_US = 86_400_000_000
_REQUESTS_IN_BLOCK = 3_000  # about: memory is bounded by it, and arrays are long enough
_SLACK_DAYS = 1.0  # no session is longer
_VISIT_US = 600_000_000  # who reacts later than that has come back for it


@dataclass(frozen=True)
class WorldConfig:
    """A world of `days` days from `start` (UTC) on; what is not said here has its own Config."""

    seed: NonNegativeInt = 0
    days: PositiveInt = 30
    start: datetime = datetime(2025, 1, 6, tzinfo=UTC)
    scenarios: tuple[Scenario, ...] = SCENARIOS
    population: PopulationConfig = field(default_factory=PopulationConfig)
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)


class World:
    """A Source of `days` days, and an endless one by `batches`.

    The same config gives the same events, bit for bit, wherever reading begins. Memory is that
    of one block of time, of the users and items of one day, and of the late events on their way.
    `batch` of a place far from the last one first makes the longest delay's worth of blocks.

    Raises:
        ConfigError: there is no scenario, or the policy's shares are more than 1.
    """

    def __init__(self, config: WorldConfig | None = None) -> None:
        config = WorldConfig() if config is None else config
        _check(config)
        self.config = config
        start = config.start if config.start.tzinfo else config.start.replace(tzinfo=UTC)
        self.start_us = int(start.timestamp()) * 1_000_000
        # Ids of events begin with the name: two different worlds never share one.
        self.name = f"world-{stable_id(repr(replace(config, days=1))) % 16**8:08x}"
        self.population = Population(config.seed, config.population)
        self.descriptions = Descriptions(self.population)
        self._writer = EventWriter(
            self.name, [s.name for s in config.scenarios], self.population, self.descriptions
        )
        self.choice = Choice(config.choice, config.scenarios)
        self.traffic = Traffic(self.population, config.scenarios, config.traffic, config.policy)
        a_day = config.population.users * config.traffic.sessions_per_user_day
        wanted = min(int(a_day * config.traffic.requests / _REQUESTS_IN_BLOCK) + 1, 86_400)
        self.blocks_a_day = next(n for n in range(wanted, 86_401) if 86_400 % n == 0)
        self.block_us = DAY_US // self.blocks_a_day
        longest_days = 2 * config.choice.longest_delay_days + _SLACK_DAYS
        self._reach = int(np.ceil(longest_days * self.blocks_a_day))
        self._stock: tuple[int, Stock] | None = None
        self._ends: list[int] = []  # events up to the end of each block that was counted
        self._reader: tuple[int, Iterator[Happened]] = (-1, iter(()))
        self._recent: dict[int, pa.RecordBatch] = {}

    @property
    def total(self) -> int:
        """How many events there are in `days` days; the first time the world is made to count."""
        blocks = self.config.days * self.blocks_a_day
        if len(self._ends) < blocks:
            walk = self._walk(len(self._ends))
            while len(self._ends) < blocks:
                self._counted(len(self._ends), next(walk))
        return self._ends[blocks - 1]

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        """Up to `size` events from number `start` on, with `EVENT_SCHEMA`."""
        end = min(start + size, self.total)
        parts = []
        while start < end:
            number = bisect_right(self._ends, start)
            before = self._ends[number - 1] if number else 0
            part = self._block(number).slice(start - before, end - start)
            parts.append(part)
            start += part.num_rows
        return pa.concat_batches(parts) if parts else self._writer.events(np.empty(0, HAPPENED))

    def batches(self, first_day: int = 0) -> Iterator[pa.RecordBatch]:
        """All events from a day on, a batch for each block of time, without end."""
        for happened in self._walk(first_day * self.blocks_a_day):
            yield self._writer.events(happened)

    def days_at(self, at_us: int | Ints) -> Floats:
        """Days since the world's start."""
        return np.atleast_1d((np.asarray(at_us) - self.start_us) / DAY_US)

    def stock(self, day: int) -> Stock:
        """Who lives on a day."""
        if self._stock is None or self._stock[0] != day:
            self._stock = (day, Stock(self.population, day))
        return self._stock[1]

    # -- blocks of time --------------------------------------------------------------------

    def _block(self, number: int) -> pa.RecordBatch:
        if number not in self._recent:
            if self._reader[0] != number:
                self._reader = (number, self._walk(number))
            walk = self._reader[1]
            happened = next(walk)
            self._reader = (number + 1, walk)
            if len(self._recent) == 2:
                del self._recent[next(iter(self._recent))]
            self._recent[number] = self._writer.events(happened)
        return self._recent[number]

    def _counted(self, number: int, happened: Happened) -> None:
        self._ends.append((self._ends[number - 1] if number else 0) + len(happened))

    def _walk(self, first: int) -> Iterator[Happened]:
        """What happens in block after block, in the order of time."""
        waiting: dict[int, list[Happened]] = defaultdict(list)
        for number in count(max(0, first - self._reach)):
            made = self._made(number)
            target = (made["at"] - self.start_us) // self.block_us
            order = np.argsort(target, kind="stable")
            targets, begins = np.unique(target[order], return_index=True)
            for block, rows in zip(
                targets.tolist(), np.split(made[order], begins[1:]), strict=True
            ):
                waiting[block].append(rows)
            here = waiting.pop(number, [])
            if number >= first:
                happened = np.concatenate([*here, np.empty(0, HAPPENED)])
                yield happened[np.argsort(happened["at"], kind="stable")]

    def _made(self, number: int) -> Happened:
        """All that comes of what begins in a block, some of it in later ones."""
        rng = np.random.default_rng([self.config.seed, 7, number])
        days = (number / self.blocks_a_day, (number + 1) / self.blocks_a_day)
        stock = self.stock(number // self.blocks_a_day)
        requests = self.traffic.requests(number, days, stock, rng)
        parts = self._births(days)
        if len(requests.day):
            lists = self.traffic.lists(requests, stock, rng)
            parts += self._shown(requests, lists, stock, rng)
            parts += self._unasked(requests, stock, rng)
        made = np.concatenate(parts)
        made["origin"] = number
        made["row"] = np.arange(len(made))
        block_start = self.start_us + number * self.block_us
        latest = block_start + (self._reach + 1) * self.block_us - 1
        np.clip(made["at"], block_start, latest, out=made["at"])
        return made

    def _births(self, days: tuple[float, float]) -> list[Happened]:
        born = []
        for kind, lives in (
            ("item", self.population.item_lives), ("user", self.population.user_lives)
        ):  # fmt: skip
            numbers, known = lives.announced(*days)
            rows = happened_rows(kind, len(numbers), at=self._at(known))
            rows[kind] = numbers
            born.append(rows)
        return born

    def _shown(
        self, requests: Requests, lists: Lists, stock: Stock, rng: np.random.Generator
    ) -> list[Happened]:
        """Impressions, what was done with them, and the queries that asked for them."""
        users = stock.users.take(requests.user)
        items = stock.items.take(lists.items)
        places = np.arange(lists.items.shape[1])
        mind = requests.interests.focused(requests.slot, self.choice.focus[requests.scenario])
        pairs = self.choice.pairs(users, mind, items, requests.scenario)
        pairs = self.choice.in_lists(pairs, items, lists.shown)
        seen = self.choice.examination(places, requests.scenario[:, None]) * lists.shown
        done = react(self.choice, pairs, items, seen * self.choice.click(pairs), rng)
        left = done.bounced & (rng.random(len(done.bounced)) < self.config.traffic.leave)
        happens = ~_after_leaving(requests, left)
        at = self._at(requests.day)
        request = {
            "user": users.number, "session": requests.session, "ordinal": requests.ordinal,
            "visit": requests.session, "scenario": requests.scenario, "at": at,
        }  # fmt: skip
        row, position = np.nonzero(lists.shown & happens[:, None])
        propensity = lists.propensity[row, position]
        impressions = happened_rows(
            "impression", len(row), item=items.number[row, position], position=position,
            propensity=propensity, **{name: column[row] for name, column in request.items()},
            note=np.where(np.isnan(propensity), NO_NOTE, lists.policy[row]),
        )  # fmt: skip
        kept = happens[done.lists]
        row, position, delay_us = done.lists[kept], done.positions[kept], done.delays_us[kept]
        reactions = happened_rows(
            done.kinds[kept], len(row), item=items.number[row, position], position=position,
            value=done.values[kept], **{name: column[row] for name, column in request.items()},
        )  # fmt: skip
        reactions["at"] += delay_us
        reactions["visit"][delay_us >= _VISIT_US] = -1
        asked = np.flatnonzero(self.traffic.searched[requests.scenario] & happens)
        searches = self._searches(requests, asked, stock, rng)
        for name in ("session", "ordinal", "scenario"):
            searches[name] = request[name][asked]
        known_from = self._at(np.maximum(users.born[asked], 0.0))
        searches["at"] = np.maximum(searches["at"] - 1_000_000, known_from)
        return [impressions, reactions, searches, self._bought_again(reactions, rng)]

    def _unasked(
        self, requests: Requests, stock: Stock, rng: np.random.Generator
    ) -> list[Happened]:
        """Searches that no list answered, and actions without an impression."""
        c = self.config.traffic
        first = np.flatnonzero(requests.ordinal == 0)
        searches = self._searches(requests, first[rng.random(len(first)) < c.search], stock, rng)
        rows = first[rng.random(len(first)) < c.organic]
        topics = requests.interests.topics[rows, requests.slot[rows]]
        items = stock.items.take(stock.of_topics(topics, rng.random(len(rows))))
        alive = (items.born <= requests.day[rows]) & (requests.day[rows] < items.gone)
        rows, items = rows[alive], items.take(alive)
        users = stock.users.take(requests.user[rows])
        at = self._at(requests.day[rows]) + 20_000_000
        done = {"user": users.number, "item": items.number, "visit": requests.session[rows]}
        clicks = happened_rows("click", len(rows), **done, at=at)
        fraction = rng.random(len(rows))
        watches = happened_rows("watch", len(rows), **done, value=fraction)
        watches["at"] = at + (1e6 * fraction * items.length_s).astype(np.int64)
        return [searches, clicks, watches]

    def _searches(
        self, requests: Requests, rows: Ints, stock: Stock, rng: np.random.Generator
    ) -> Happened:
        """Queries from the interest that the session is about; a suggested one strays often."""
        c, seed = self.config.traffic, self.config.seed
        user, at = stock.users.number[requests.user[rows]], self._at(requests.day[rows])
        topics = requests.interests.topics[rows, requests.slot[rows]]
        suggested = rng.random(len(rows)) < c.suggested
        strays = suggested & (rng.random(len(rows)) < 0.5)
        topics = np.where(strays, rng.integers(0, self.config.population.topics, len(rows)), topics)
        shown = picked(stock.cumulative, uniform(seed, "suggested item", user, at))
        popular = suggested & (uniform(seed, "suggested popular", user, at) < c.suggested_popular)
        topics = np.where(popular, stock.items.topic[shown], topics)
        return happened_rows(
            "search", len(rows), user=user, visit=requests.session[rows], at=at,
            note=np.where(suggested, SUGGESTED, NO_NOTE),
            query=self.descriptions.query_numbers(topics, rng),
        )  # fmt: skip

    def _bought_again(self, reactions: Happened, rng: np.random.Generator) -> Happened:
        bought = reactions[reactions["kind"] == KINDS.index("buy")]
        again: Happened = bought[rng.random(len(bought)) < self.config.traffic.rebuy].copy()
        for name in ("session", "ordinal", "visit", "position", "scenario"):
            again[name] = -1
        longest_us = self.config.choice.longest_delay_days * DAY_US
        again["at"] += (longest_us * rng.random(len(again))).astype(np.int64)
        return again

    def _at(self, days: Floats) -> Ints:
        return self.start_us + (days * DAY_US).astype(np.int64)


def load_world(file: Path | None) -> WorldConfig:
    """The world of a TOML file whose tables are named after the fields; the default for None.

    Raises:
        ConfigError: it cannot be read, or a setting is unknown or out of its range.
    """
    if file is None:
        return WorldConfig()
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"the world {file} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the world {file} is not TOML: {error}") from None
    return fill(WorldConfig, table, "world")


def _open(directory: Path) -> World:
    file = directory / "world.toml"
    return World(load_world(file if file.is_file() else None))


def _after_leaving(requests: Requests, left: Bools) -> Bools:
    """Which requests never happen, because the visitor left at an earlier one of the session."""
    before: Ints = np.cumsum(left) - left
    starts = np.flatnonzero(requests.ordinal == 0)
    at_start: Ints = np.repeat(before[starts], np.diff([*starts, len(left)]))
    return before > at_start


def _check(config: WorldConfig) -> None:
    if not config.scenarios or config.scenarios[0].from_day > 0:
        raise ConfigError("world.scenarios must begin with one that is open from day 0")
    if config.policy.random + config.policy.popular > 1:
        raise ConfigError(
            "world.policy.random and world.policy.popular are shares: together at most 1,"
            f" not {config.policy.random + config.policy.popular:g}"
        )


WORLD = SourceInfo(
    name="world",
    about="planted: drifting tastes, positions, clicks to purchases, searches; its truth is known",
    open=_open,
    events=530_957,
    users=2_300,
    items=3_000,
    span="30 days from 2025-01-06",
    terms="made by Headrace; another one by `world.toml` in the data directory",
    folder="world",
    shipped=True,
)
