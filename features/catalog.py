"""The catalog: what is known of items and users, search, likeness, and recent popularity.

A Step without outputs: the serving process runs it on `events`, so that it restarts from a cut
like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.aggregator import AggregatorConfig
from features.attributes import Attributes, AttributesConfig, Change
from features.behaviour import BehaviourConfig
from features.content import ContentIndex
from features.content_features import ContentConfig, Features
from features.fields import TEXT_ALWAYS
from features.statistics import ItemStatistics
from features.titles import Titles
from streaming.artefact import Artefact
from streaming.event_columns import event_columns
from streaming.events import EventRules
from streaming.intake import Intake
from streaming.log import Record

Ids = NDArray[np.int64]
_RANKED = 1_000  # popular items kept in order


@dataclass(frozen=True)
class CatalogConfig:
    """`interests` is the field of users that lists what they said they like at sign-up, and
    `interests_in` the field of items that has the same values.
    """

    items: AttributesConfig = field(default_factory=AttributesConfig)
    users: AttributesConfig = field(default_factory=AttributesConfig)
    content: ContentConfig = field(default_factory=ContentConfig)
    interests: str = "interests"
    interests_in: str = "genres"


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What is known of an item; `title` and `attributes` come from its `item` event."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]


class CatalogUser(NamedTuple):
    """What is known of a user, from its `user` event."""

    user_id: str
    attributes: dict[str, Any]


class Catalog:
    """Every item that was declared or acted upon and every user that was declared, read by other
    threads while the stream writes: each is seen as it was or as it is.

    `items` and `users` are what they said of themselves, as columns and with their fields;
    `content` tells which items are alike.
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
        if state is not None:
            self._intake.restore(state.shards["intake"])
            self._index(self.items.restore("items", state.shards))
            self.users.restore("users", state.shards)
            self._rank()

    def __len__(self) -> int:
        return len(self.items)

    def on_batch(self, records: Sequence[Record]) -> list[object]:
        taken = self._intake.take(records)
        events = taken.events
        self._index(self.items.hear(*_described(events, "item", events["item_id"].is_valid())))
        self.users.hear(*_described(events, "user", pc.equal(events["kind"], "user")))
        self._statistics.update(self._behaviour.actions(event_columns(events, taken.logged_us)))
        self._rank()
        return []

    def on_time(self, now_us: int) -> list[object]:  # noqa: ARG002
        return []

    def snapshot(self) -> Artefact:
        shards = {
            "intake": self._intake.snapshot(),
            **self.items.tables("items"),
            **self.users.tables("users"),
            **self._statistics.tables(),
        }
        return Artefact({"items": len(self.items), "users": len(self.users)}, shards)

    # -- reading ---------------------------------------------------------------------------

    def get(self, item: int) -> CatalogItem | None:
        """The item with this stable id, None for one that was never heard of."""
        found = self.items.get(item)
        if found is None:
            return None
        name, attributes = found
        return CatalogItem(name, attributes.pop(TEXT_ALWAYS, None), attributes)

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

    def of_interest(self, user: int, count: int) -> list[int]:
        """Items that fit best what a user said to like; none if that is nothing."""
        said = self.interests(user)
        if not said:
            return []
        wanted = Features.of_values(self._config.interests_in, said, self._config.content)
        found, _ = self.content.like(wanted, count)
        return [item for item in found[0].tolist() if item >= 0]

    def popular(self, count: int) -> list[int]:
        """The items most popular lately, best first, then any others; at most 1,000."""
        return self._popular[:count]

    def search(self, text: str, limit: int) -> list[CatalogItem]:
        """Items whose title has every word of the text, popular ones first.

        A word that begins a word of the title counts more than one inside of it. An empty text
        gives what is popular.
        """
        words = text.casefold().split()
        if not words:
            found = self.popular(limit)
        else:
            items, starts, titles = self._titles.search(words)
            popularity = self._statistics.columns(items).popularity
            found = _best(items, (-starts, -popularity), titles, limit)
        return [item for i in found if (item := self.get(i)) is not None]

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
            self.content.remove(change.forgotten)
            self._titles.remove(change.forgotten)


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
