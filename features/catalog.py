"""The catalog: from stable ids back to strings and titles, search, and recent popularity.

A Step without outputs: the serving process runs it on `events`, so that it restarts from a cut
like everything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.statistics import ItemStatistics
from streaming.artefact import Artefact
from streaming.event_columns import event_columns
from streaming.events import EventRules
from streaming.ids import stable_id
from streaming.intake import Intake
from streaming.log import Record

_RANKED = 1_000  # popular items kept in order


@dataclass(frozen=True, slots=True)
class CatalogItem:
    """What is known of an item; `title` and `attributes` come from its `item` event."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]


class Catalog:
    """Every item that was declared or acted upon, read while the stream writes.

    Reads come from other threads than the one that runs `on_batch`: entries are replaced whole
    and never changed, so a reader sees an item as it was or as it is.
    """

    def __init__(
        self,
        rules: EventRules,
        behaviour: BehaviourConfig,
        aggregator: AggregatorConfig,
        state: Artefact | None = None,
    ) -> None:
        self._intake = Intake(rules, aggregator.remembered_events)
        self._behaviour = behaviour
        self._statistics = ItemStatistics(aggregator.popularity_half_life, state)
        self._items: dict[int, CatalogItem] = {}
        self._popular: list[int] = []
        if state is not None:
            self._intake.restore(state.shards["intake"])
            for row in state.shards["catalog"].to_pylist():
                self._put(row["item_id"], json.loads(row["attributes"]))
            self._rank()

    def __len__(self) -> int:
        return len(self._items)

    def on_batch(self, records: Sequence[Record]) -> list[object]:
        taken = self._intake.take(records)
        events = taken.events
        declared = events.filter(pc.equal(events["kind"], "item"))
        pairs = zip(
            declared["item_id"].to_pylist(), declared["attributes"].to_pylist(), strict=True
        )
        for item, attributes in pairs:
            self._put(item, json.loads(attributes or "{}"))
        for item in pc.unique(events["item_id"].drop_null()).to_pylist():
            if stable_id(item) not in self._items:
                self._put(item, {})
        self._statistics.update(self._behaviour.actions(event_columns(events, taken.logged_us)))
        self._rank()
        return []

    def on_time(self, now_us: int) -> list[object]:  # noqa: ARG002
        return []

    def snapshot(self) -> Artefact:
        items = list(self._items.values())
        catalog = pa.table(
            {
                "item_id": pa.array([i.item_id for i in items], pa.string()),
                "attributes": pa.array(
                    [json.dumps({"title": i.title, **i.attributes}) for i in items], pa.string()
                ),
            }
        )
        shards = {"intake": self._intake.snapshot(), "catalog": catalog}
        return Artefact({"items": len(items)}, {**shards, **self._statistics.tables()})

    # -- reading ---------------------------------------------------------------------------

    def get(self, item: int) -> CatalogItem | None:
        """The item with this stable id, None for one that was never heard of."""
        return self._items.get(item)

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
            return [self._items[i] for i in self.popular(limit) if i in self._items]
        found = []
        for stable, item in list(self._items.items()):
            title = (item.title or "").casefold()
            if all(word in title for word in words):
                starts = sum(f" {word}" in f" {title}" for word in words)
                found.append((-starts, -self._statistics.get(stable).popularity, title, item))
        return [item for *_, item in sorted(found, key=lambda entry: entry[:3])[:limit]]

    def _rank(self) -> None:
        popular = self._statistics.most_popular(_RANKED)
        others = islice((i for i in self._items if i not in self._statistics.items), _RANKED)
        self._popular = [*popular, *others][:_RANKED]

    def _put(self, item: str, attributes: dict[str, Any]) -> None:
        title = attributes.pop("title", None)
        self._items[stable_id(item)] = CatalogItem(
            item, None if title is None else str(title), attributes
        )
