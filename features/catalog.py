"""The catalog: what is known of items and users, search, likeness, popularity, and what is new.

A Step without outputs: the serving process runs it on `events`, so that it restarts from a cut
like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.aggregator import AggregatorConfig
from features.attributes import TURN, Attributes, AttributesConfig, Change
from features.batch import Jagged
from features.behaviour import BehaviourConfig
from features.content import ContentIndex
from features.content_features import ContentConfig, Features
from features.fields import TEXT_ALWAYS
from features.newcomers import Newcomers, NewcomersConfig, Young
from features.popularity import (
    EVERYONE,
    HotLists,
    ListTrust,
    Popularity,
    PopularityConfig,
    Shares,
)
from features.statistics import ItemStatistics
from features.titles import Titles
from streaming.artefact import Artefact
from streaming.event_columns import NONE, Actions, EventColumns, event_columns
from streaming.events import EventRules
from streaming.ids import stable_id, stable_ids
from streaming.intake import Intake
from streaming.log import Record

Ids = NDArray[np.int64]
_RANKED = 1_000  # popular items kept in order
_CELLS = 8  # of one user or item: so many values count at most
# A category and a user's field may be called the same; their cells are not.
_OF_ITEMS = stable_id("a cell of items")
_AMORTISED = 64  # lists are made anew after so many pairs' worth of changes
_REFRESHED_US = 1_000_000  # or after so long, if anything has changed


@dataclass(frozen=True)
class CatalogConfig:
    """`interests` is the field of users that lists what they said they like at sign-up, and
    `interests_in` the field of items that has the same values. `cells` are the fields of users
    by which people are told apart: each value of a field is a cell of people, and all of a user's
    values together are another.
    """

    items: AttributesConfig = field(default_factory=AttributesConfig)
    users: AttributesConfig = field(default_factory=AttributesConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    interests: str = "interests"
    interests_in: str = "genres"
    cells: tuple[str, ...] = ("gender", "age")
    popularity: PopularityConfig = field(default_factory=PopularityConfig)
    newcomers: NewcomersConfig = field(default_factory=NewcomersConfig)


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What is known of an item; `title` and `attributes` come from its `item` event."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]

    @property
    def described(self) -> dict[str, Any]:
        """All that was said of it, the title too."""
        return self.attributes if self.title is None else {**self.attributes, "title": self.title}


class CatalogUser(NamedTuple):
    """What is known of a user, from its `user` event."""

    user_id: str
    attributes: dict[str, Any]


class Catalog:
    """Every item that was declared or acted upon and every user that was declared, read by other
    threads while the stream writes: each is seen as it was or as it is.

    `items` and `users` are what they said of themselves, as columns and with their fields;
    `content` tells which items are alike, `hot` what is hot where, and `young` what is new.

    Every action counts in the hot lists of everyone, of the cells that its user was in at that
    moment, and of the categories that its item was in, by its reward: what pleases is what is
    worth showing, and a list of what people rated badly helps nobody. The clock of the lists is
    the newest event time, so that a replayed past is the present of its time. They are made anew
    when the actions, new items and declarations since are a 64th of what is counted, so that making
    them costs less than counting, or else, where there are some or the clock has moved, after a
    second.
    """

    def __init__(
        self,
        rules: EventRules,
        behaviour: BehaviourConfig,
        aggregator: AggregatorConfig,
        state: Artefact | None = None,
        config: CatalogConfig | None = None,
    ) -> None:
        self._config = config or CatalogConfig()
        self._intake = Intake(rules, aggregator.remembered_events)
        self._behaviour = behaviour
        self._statistics = ItemStatistics(aggregator.popularity_half_life, state)
        self.items = Attributes(self._config.items)
        self.users = Attributes(self._config.users)
        self.content = ContentIndex(self._config.content)
        self._titles = Titles()
        self._popular: list[int] = []
        self._recent: Shares = np.empty(0, np.int64), np.empty(0)  # items and their popularity
        # A cut of an older release has neither: they fill from now on.
        counted = None if state is None or "newcomers" not in state.shards else state
        self._popularity = Popularity(self._config.popularity, counted)
        newcomers = None if counted is None else counted.shards["newcomers"]
        self._newcomers = Newcomers(self._config.newcomers, newcomers)
        self._clock_us = 0  # the newest event time
        self._made_at_us = 0  # the clock when the lists were made
        self._changes = 0  # since then
        self._refresh_due_us = 0
        if state is not None:
            self._intake.restore(state.shards["intake"])
            self._index(self.items.restore("items", state.shards))
            self.users.restore("users", state.shards)
            self._clock_us = state.meta.get("clock_us", 0)
            self._rank()
            self._refresh()

    def __len__(self) -> int:
        return len(self.items)

    def on_batch(self, records: Sequence[Record]) -> list[object]:
        taken = self._intake.take(records)
        columns = event_columns(taken.events, taken.logged_us)
        actions = self._behaviour.actions(columns)
        bounds = self._bounds(columns, actions)
        for start, end in pairwise(bounds):
            self._meet(taken.events.slice(start, end - start), columns, start)
            self._count(actions, *np.searchsorted(actions.rows, (start, end)).tolist())
        self._statistics.update(actions)
        self._clock_us = int(columns.at_us.max(initial=self._clock_us))
        self._rank()
        if self._changes > len(self._popularity) // _AMORTISED:
            self._refresh()
        return []

    def on_time(self, now_us: int) -> list[object]:
        late = self._clock_us > self._made_at_us  # what is shown moves the clock, changes nothing
        waiting = late or self._changes or self._newcomers.pending
        if waiting and now_us >= self._refresh_due_us:
            self._refresh()
            self._refresh_due_us = now_us + _REFRESHED_US
        return []

    def snapshot(self) -> Artefact:
        shards = {
            "intake": self._intake.snapshot(),
            "newcomers": self._newcomers.table(),
            **self.items.tables("items"),
            **self.users.tables("users"),
            **self._statistics.tables(),
            **self._popularity.tables(),
        }
        known = {"items": len(self.items), "users": len(self.users), "clock_us": self._clock_us}
        return Artefact(known, shards)

    # -- reading ---------------------------------------------------------------------------

    def get(self, item: int) -> CatalogItem | None:
        """The item with this stable id, None for one that was never heard of."""
        return self.get_each([item])[0]

    def get_each(self, items: Sequence[int]) -> list[CatalogItem | None]:
        """As `get`, of several at once."""
        found = self.items.get_each(np.array(items, np.int64))
        return [
            None if one is None else CatalogItem(one[0], one[1].pop(TEXT_ALWAYS, None), one[1])
            for one in found
        ]

    def untried(self, item: int) -> bool:
        """Whether the item is new, and nobody has acted upon it yet."""
        where = np.flatnonzero(self.young.items == item)
        return bool(len(where)) and int(self.young.actions[where[0]]) == 0

    def user(self, user: int) -> CatalogUser | None:
        """The user with this stable id, None for one that was never declared."""
        found = self.users.get(user)
        return None if found is None else CatalogUser(*found)

    def interests(self, user: int) -> list[str]:
        """What a user said at sign-up to like; empty if nothing."""
        found = self.users.get(user)
        said = found[1].get(self._config.interests) if found is not None else None
        values = said if isinstance(said, list) else [] if said is None else [said]
        return [str(value) for value in values]

    @property
    def hot(self) -> HotLists:
        """What is hot, for everyone and in every cell; the lists never change."""
        return self._popularity.hot

    @property
    def young(self) -> Young:
        """The items that are new, and what each is like; never changes."""
        return self._newcomers.young

    def cells(self, user: int) -> list[list[int]]:
        """The cells that a user is in, as `HotLists.shares` wants them: everyone's, that of each
        value, and that of all together, as far as anything was counted there.
        """
        one = np.array([user])
        if self.users.names(one)[0] is None:  # most often nothing was declared
            return [[EVERYONE]] if self.hot.has(EVERYONE) else []
        *values, together = self._cells_of_users(one)[0].tolist()
        levels = ([EVERYONE], values, [together])
        return [here for level in levels if (here := [c for c in level if self.hot.has(c)])]

    def hot_for(self, cells: Sequence[Sequence[int]], trust: ListTrust) -> Shares:
        """What part of what is done in these `cells` is done with which item.

        Above the longest window stands what was popular lately by the count of actions, however
        long these took.
        """
        items, popularity = self._recent
        prior = (items, popularity / popularity.sum()) if len(items) else None
        return self.hot.shares(cells, trust, prior)

    def of_interest(self, said: Sequence[str], trust: ListTrust, count: int) -> Shares:
        """What part of what is done with items of these values is done with which.

        As in `hot_for`, with what was popular among these items; and beside it, as `trust.content`
        actions, stand the `count` items that fit the values best, by how well they do.
        """
        field, recent = self._config.interests_in, self._recent
        wanted = stable_ids(f"{field}={value}" for value in said)
        tokens = self.items.tokens(recent[0], [field])
        fits = np.isin(np.arange(len(recent[0])), tokens.owners()[np.isin(tokens.values, wanted)])
        features = Features.of_values(field, said, self._config.content)
        alike, similarity = (column[0] for column in self.content.like(features, count))
        alike, similarity = alike[alike >= 0], similarity[alike >= 0].astype(np.float64)
        similarity *= trust.content / max(similarity.sum(), 1e-9)
        items, place = np.unique(np.append(recent[0][fits], alike), return_inverse=True)
        actions = np.bincount(place, np.append(recent[1][fits], similarity), len(items))
        prior = (items, actions / actions.sum()) if len(items) else None
        return self.hot.shares([(wanted ^ _OF_ITEMS).tolist()], trust, prior)

    def popular(self, count: int) -> list[int]:
        """The items most popular lately, best first, then any others; at most 1,000."""
        return self._popular[:count]

    def search(self, text: str, limit: int) -> list[CatalogItem]:
        """Items whose title has every word of the text, popular ones first.

        A word that begins a word of the title counts more than one inside of it. An empty text
        gives what is popular.
        """
        found = self.get_each(self.found(text, limit).tolist())
        return [item for item in found if item is not None]

    def found(self, text: str, limit: int) -> Ids:
        """The stable ids of what `search` finds, in its order."""
        words = text.casefold().split()
        if not words:
            return np.array(self.popular(limit), np.int64)
        items, starts, titles = self._titles.search(words)
        popularity = self._statistics.columns(items).popularity
        return np.array(_best(items, (-starts, -popularity), titles, limit), np.int64)

    # -- what is hot, and what is new ----------------------------------------------------------

    def _bounds(self, columns: EventColumns, actions: Actions) -> list[int]:
        """Where to cut a batch, so that every action meets its user and its item as they were,
        wherever batches end: before what is declared after it was acted with, and around the
        event by which others are forgotten.
        """
        bounds = {0, len(columns)}
        mentions = {"item": columns.item_id != NONE, "user": columns.of_kind("user")}
        kept = {"item": self.items, "user": self.users}
        ids = {"item": columns.item_id, "user": columns.user_id}
        acted = {"item": actions.item_id, "user": actions.user_id}
        for kind, mentioned in mentions.items():
            last = np.flatnonzero(mentioned)[kept[kind].until_turn - 1 :: TURN]
            bounds.update(last.tolist(), (last + 1).tolist())
            rows = np.flatnonzero(columns.of_kind(kind))
            bounds.update(_declared_late(rows, ids[kind][rows], actions.rows, acted[kind]))
        return sorted(bounds)

    def _meet(self, events: pa.RecordBatch, columns: EventColumns, start: int) -> None:
        """Takes what a part of the batch, from row `start` on, says of items and users."""
        mentioned, first = np.unique(
            columns.item_id[start : start + len(events)], return_index=True
        )
        order = np.argsort(first)
        order = order[mentioned[order] != NONE]
        names = self.items.names(mentioned[order])
        order = order[[name is None for name in names]]
        self._newcomers.hear(mentioned[order], columns.at_us[start + first[order]])
        self._changes += len(order)
        self._index(self.items.hear(*_described(events, "item", events["item_id"].is_valid())))
        self.users.hear(*_described(events, "user", pc.equal(events["kind"], "user")))

    def _count(self, actions: Actions, start: int, end: int) -> None:
        """Counts those actions that pleased, where they belong."""
        rows = start + np.flatnonzero(actions.reward[start:end] > 0)
        if not len(rows):
            return
        users, user = np.unique(actions.user_id[rows], return_inverse=True)
        items, item = np.unique(actions.item_id[rows], return_inverse=True)
        categories = self.items.tokens(items, [self._config.interests_in])
        cells = [
            self._cells_of_users(users)[user],
            _columns(Jagged(categories.values ^ _OF_ITEMS, categories.offsets))[item],
        ]
        rewards = actions.reward[rows].astype(np.float64)
        self._popularity.update(
            actions.item_id[rows], actions.at_us[rows], rewards, np.hstack(cells)
        )
        self._changes += len(rows)

    def _cells_of_users(self, users: Ids) -> Ids:
        """The cell of each value, and that of all together where there are several; NONE where a
        user has fewer, (n, cells).
        """
        values = _columns(self.users.tokens(users, self._config.cells))
        several = (values != NONE).sum(axis=1) > 1
        together = np.bitwise_xor.reduce(np.where(values == NONE, 0, values), axis=1)
        return np.column_stack([values, np.where(several, together, NONE)])

    def _refresh(self) -> None:
        """Makes anew what is read of the lists; none of it is state."""
        popular = np.sort(np.array(self._popular, np.int64))
        popularity = self._statistics.columns(popular).popularity
        self._recent = popular[popularity > 0], popularity[popularity > 0]
        self._popularity.refresh(self._clock_us)
        self._newcomers.refresh(self._clock_us, self._statistics, self.content)
        self._made_at_us, self._changes = self._clock_us, 0

    def _rank(self) -> None:
        popular = self._statistics.most_popular(_RANKED)
        names = self.items.names(np.array(popular, np.int64))
        popular = [i for i, name in zip(popular, names, strict=True) if name is not None]
        if len(popular) < _RANKED:
            taken = set(popular)
            others = (i for i in self.items.newest(_RANKED).tolist() if i not in taken)
            popular += islice(others, _RANKED - len(popular))
        self._popular = popular

    def _index(self, changes: Sequence[Change]) -> None:
        """Lets content and titles follow what changed of the items."""
        for change in changes:
            declared = change.declared
            features = Features.of(change.cells, len(declared), self._config.content)
            self.content.put(declared, features)
            self._titles.put(declared, _titles(change))
            self._newcomers.declared(declared)
            self._changes += len(declared)
            self.content.remove(change.forgotten)
            self._titles.remove(change.forgotten)


def _declared_late(rows: Ids, declared: Ids, acted_rows: Ids, acted: Ids) -> list[int]:
    """Those of the `rows` at which something was declared again since it was acted with."""
    both = np.intersect1d(declared, acted)
    if not len(both):
        return []
    declares, acts = np.isin(declared, both), np.isin(acted, both)
    events = [
        *zip(rows[declares].tolist(), declared[declares].tolist(), repeat(True)),
        *zip(acted_rows[acts].tolist(), acted[acts].tolist(), repeat(False)),
    ]
    late: list[int] = []
    used: set[int] = set()
    for row, entity, declares_it in sorted(events):
        if not declares_it:
            used.add(entity)
        elif entity in used:
            late.append(row)
            used.clear()  # the batch is cut here
    return late


def _columns(lists: Jagged) -> Ids:
    """The first 8 values of each list side by side, NONE where there are fewer."""
    places = np.arange(len(lists.values)) - np.repeat(lists.offsets[:-1], lists.lengths)
    kept = places < _CELLS
    table = np.full((len(lists.lengths), int(places[kept].max(initial=-1)) + 1), NONE)
    table[lists.owners()[kept], places[kept]] = lists.values[kept]
    return table


def _best(
    items: Ids, keys: tuple[Ids, NDArray[np.float64]], titles: Sequence[str], limit: int
) -> list[int]:
    """The first items in the order of two keys, then of the title."""
    first, second = keys
    last = np.lexsort((second, first))[:limit][-1:]
    if not len(last):
        return []
    # Titles decide only among those that the keys let in.
    rows = (first < first[last]) | ((first == first[last]) & (second <= second[last]))
    found = [(first[i], second[i], titles[i], items[i]) for i in np.flatnonzero(rows).tolist()]
    return [int(item) for *_, item in sorted(found)[:limit]]


def _titles(change: Change) -> list[str | None]:
    """The title of each item that was declared."""
    cells = change.cells
    titles: list[str | None] = [None] * len(change.declared)
    if TEXT_ALWAYS in cells.names:
        for i in np.flatnonzero(cells.field == cells.names.index(TEXT_ALWAYS)).tolist():
            titles[cells.owner[i]] = cells.values[i]
    return titles


def _described(
    events: pa.RecordBatch, kind: str, chosen: pa.BooleanArray
) -> tuple[list[str], list[str | None]]:
    """Of the chosen events the item or user, and its description where the event declares it."""
    rows = events.filter(chosen)
    declares = pc.equal(rows["kind"], kind)
    texts = pc.if_else(declares, pc.fill_null(rows["attributes"], "{}"), None)
    return rows[f"{kind}_id"].to_pylist(), texts.to_pylist()
