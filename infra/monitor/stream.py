"""Events on their way to answers, as they come by: for somebody who looks on.

What is logged is read only while somebody asks; of what comes faster than one can look, the newest.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from features.catalog import Catalog
from streaming.decode import decode_events
from streaming.errors import ArtefactCorrupt, LogError
from streaming.events import EventRules
from streaming.ids import stable_id
from streaming.log import EVENTS, NOBODY, SAMPLES, VERSIONS, Log, Record, TopicPartition
from streaming.samples import decode_samples, labels_in
from trainers.versions import is_doorbell, read_announcement

Step = dict[str, Any]
_TOPICS = (EVENTS, SAMPLES, VERSIONS)
_KEPT = 400  # steps
_AT_ONCE = 64  # records of a topic in one look
_OF_RECORD = 20  # rows of a record, at most: the last ones
_LOOK_BACK = 10  # records of a partition, for who begins to look
_ASKED_WITHIN_S = 10.0
_USERS = 10_000  # whose names are remembered


class Stream:
    """The newest steps, each with a number that grows."""

    def __init__(self, log: Log, rules: EventRules, catalog: Catalog) -> None:
        self._log = log
        self._rules = rules
        self._catalog = catalog
        self._steps: deque[Step] = deque(maxlen=_KEPT)
        self._number = 0
        self._positions: dict[TopicPartition, int] = {}
        self._asked_at = -_ASKED_WITHIN_S
        self._users: OrderedDict[int, str] = OrderedDict()  # samples know them by number alone
        self._lock = threading.Lock()

    def steps(self, after: int) -> dict[str, Any]:
        """`Stream` of the page: what came after step number `after`, oldest first."""
        with self._lock:
            now = time.monotonic()
            try:
                if now - self._asked_at >= _ASKED_WITHIN_S:
                    self._begin()
                self._asked_at = now
                self._look()
            except LogError:
                self._asked_at = -_ASKED_WITHIN_S  # something fell out of the log: begin again
            return {
                "next": self._number,
                "steps": [step for step in self._steps if step["seq"] > after],
            }

    def _begin(self) -> None:
        first = self._log.positions(NOBODY, _TOPICS)
        ends = self._log.ends(_TOPICS)
        self._positions = {
            place: max(first[place], end - _LOOK_BACK) for place, end in ends.items()
        }

    def _look(self) -> None:
        found: list[Step] = []
        for topic in _TOPICS:
            of_topic = {  # the newest is what is looked at
                place: max(self._positions.get(place, 0), end - _AT_ONCE)
                for place, end in self._log.ends([topic]).items()
            }
            self._positions |= of_topic
            for record in self._log.read(of_topic, _AT_ONCE, 0.0):
                self._positions[record.place] = record.offset + 1
                found += self._steps_of(record)
        for step in sorted(found, key=lambda step: float(step["at"])):
            self._number += 1
            self._steps.append({"seq": self._number, **step})

    def _steps_of(self, record: Record) -> Iterator[Step]:
        if record.topic == EVENTS:
            events = decode_events([record], self._rules).events
            yield from self._of_events(events, record.logged_us / 1e6)
        elif record.topic == SAMPLES:
            try:
                yield from self._of_samples(decode_samples(record), record.logged_us / 1e6)
            except ArtefactCorrupt:
                return
        elif not is_doorbell(record):
            info = read_announcement(record)
            kind = "delta" if info.base is not None else "snapshot"
            held = "" if info.held is None else f", held back: {info.held}"
            yield {
                "stage": "version", "at": record.logged_us / 1e6, "version": info.name,
                "text": f"{kind} after step {info.step:,}{held}",
            }  # fmt: skip

    def _of_events(self, events: pa.RecordBatch, at: float) -> Iterator[Step]:
        rows = events.slice(max(0, events.num_rows - _OF_RECORD)).to_pylist()
        answers: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["user_id"] is not None:
                self._remember(row["user_id"])
            if row["kind"] == "impression" and row["request_id"]:
                answers.setdefault(row["request_id"], []).append(row)
                continue
            value = "" if row["value"] is None else f" {row['value']:g}"
            yield {
                "stage": "event", "at": at, "request_id": row["request_id"],
                "user_id": row["user_id"], "item_id": row["item_id"],
                "title": self._title(row["item_id"]), "text": f"{row['kind']}{value}",
            }  # fmt: skip
        for request_id, shown in answers.items():
            yield self._answer(request_id, shown, at)

    def _answer(self, request_id: str, shown: Sequence[dict[str, Any]], at: float) -> Step:
        said = json.loads(shown[0]["attributes"] or "{}")
        titles = [self._title(row["item_id"]) or row["item_id"] for row in shown]
        return {
            "stage": "answer", "at": at, "request_id": request_id, "user_id": shown[0]["user_id"],
            "item_id": shown[0]["item_id"], "title": titles[0], "version": said.get("version"),
            "text": ", ".join(map(str, titles)),
        }  # fmt: skip

    def _of_samples(self, rows: pa.RecordBatch, at: float) -> Iterator[Step]:
        labels = labels_in(rows.schema)
        columns = ["user_id", "item_id", "kind", *(f"label_{label}" for label in labels)]
        last = rows.slice(max(0, rows.num_rows - _OF_RECORD)).select(columns)
        for row in last.to_pylist():
            item = self._catalog.get(row["item_id"])
            known = (
                f"{label} {float(row[f'label_{label}']):g}"
                for label in labels
                if row[f"label_{label}"] is not None
            )
            yield {
                "stage": "sample", "at": at, "user_id": self._users.get(row["user_id"]),
                "item_id": None if item is None else item.item_id,
                "title": None if item is None else item.title,
                "text": ", ".join([row["kind"], *known]),
            }  # fmt: skip

    def _title(self, item_id: str | None) -> str | None:
        item = None if item_id is None else self._catalog.get(stable_id(item_id))
        return None if item is None else item.title

    def _remember(self, user_id: str) -> None:
        self._users[stable_id(user_id)] = user_id
        if len(self._users) > _USERS:
            self._users.popitem(last=False)
