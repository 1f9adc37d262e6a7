"""The topics of a system in Kafka: what they should be, what they are, and the plan between.

Nothing is ever removed: partitions cannot be taken away, and a topic that is there stays. Only
`samples` may get more partitions later. There a record stands for itself: one more partition is
one more order in which a trainer may take its steps, and a reader begins a new one at its first
record. Those of `events` must stay, for a user's events have to follow each other in one of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import PositiveFloat, PositiveInt

from streaming.errors import ConfigError, LogError
from streaming.kafka_client import Cluster
from streaming.log import DEAD_LETTERS, EVENTS, SAMPLES, TOPICS, VERSIONS

CREATE, CHANGE, KEEP, CANNOT = (
    "would be created",
    "would be changed",
    "is as it should be",
    "cannot be",
)
NOT_REPORTED = "not reported by the broker"
_DAY_MS = 86_400_000

_WHY = {
    EVENTS: "the partitions are what joiners can share; a user's events lie in one of them",
    SAMPLES: "the partitions are what the ranks of a trainer can share; in each, the order of"
    " records is the order of steps",
    DEAD_LETTERS: "kept longer, for people to look at and to drive in again",
    VERSIONS: "by size, not age: a reader that starts needs the last snapshot however old it is,"
    " and the changes since, so that compaction would lose what it needs",
}
_WHY_MORE = (
    "stop the joiners and the trainer before --apply and start them after it: they count the"
    " partitions at their start. Every record is still read once; only the order of steps changes"
)
_KNOWN_WITHIN_S = 10.0  # partitions that the broker has agreed to


@dataclass(frozen=True)
class TopicsConfig:
    """`partitions` of the topic `events`, and `samples_partitions` of `samples`; others have one.

    Raises:
        ConfigError: there would be more partitions of `samples` than of `events`.
    """

    partitions: PositiveInt = 4
    samples_partitions: PositiveInt = 1
    replication: PositiveInt = 1
    events_retention_days: PositiveFloat = 7.0
    samples_retention_days: PositiveFloat = 7.0
    dead_letters_retention_days: PositiveFloat = 30.0
    versions_bytes: PositiveInt = 1024**3
    max_record_bytes: PositiveInt = 16 * 1024**2

    def __post_init__(self) -> None:
        if self.samples_partitions > self.partitions:
            raise ConfigError(
                f"samples_partitions = {self.samples_partitions} is more than partitions ="
                f" {self.partitions}: the rest would stay empty, for the samples of one partition"
                f" of {EVENTS} lie in one; lower the one or raise the other"
            )

    def partitions_of(self, topic: str) -> int:
        """How many partitions a topic should have."""
        return {EVENTS: self.partitions, SAMPLES: self.samples_partitions}.get(topic, 1)


@dataclass(frozen=True)
class TopicPlan:
    """What would be done about one topic; `problem` says what cannot be, and how to mend it."""

    topic: str
    action: str
    partitions: int
    have: int | None
    settings: Mapping[str, str]
    changes: Mapping[str, str] = field(default_factory=dict)
    unreported: tuple[str, ...] = ()
    why: str = ""
    problem: str | None = None

    @property
    def grows(self) -> bool:
        """Whether a topic that is there would get more partitions."""
        return self.action == CHANGE and self.have is not None and self.have < self.partitions


def wanted_settings(topic: str, config: TopicsConfig) -> dict[str, str]:
    """The settings that a topic should have, as the broker writes them."""
    days = {
        EVENTS: config.events_retention_days,
        SAMPLES: config.samples_retention_days,
        DEAD_LETTERS: config.dead_letters_retention_days,
    }
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": str(int(days[topic] * _DAY_MS)) if topic in days else "-1",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(config.max_record_bytes),
    }
    if topic == VERSIONS:
        settings["retention.bytes"] = str(config.versions_bytes)
    if config.replication >= 3:
        settings["min.insync.replicas"] = "2"
    return settings


class Topics:
    """Plans and makes the topics at `kafka://...`."""

    def __init__(self, url: str, config: TopicsConfig | None = None) -> None:
        self._config = config or TopicsConfig()
        self._cluster = Cluster(url)
        self._prefix = self._cluster.url.topic_prefix

    def plan(self) -> list[TopicPlan]:
        """What would have to be done, topic by topic; changes nothing."""
        names = {self._prefix + topic: topic for topic in TOPICS}
        counts = self._cluster.partitions(names)
        settings = self._cluster.settings(list(counts))
        return [
            self._plan_one(topic, name, counts.get(name), settings.get(name))
            for name, topic in names.items()
        ]

    def retention_s(self) -> dict[str, float]:
        """How long each topic that is there keeps its records, as far as the broker says."""
        names = {self._prefix + topic: topic for topic in TOPICS}
        found = self._cluster.settings(list(self._cluster.partitions(names)))
        kept_ms = {
            names[name]: float(settings["retention.ms"])
            for name, settings in found.items()
            if "retention.ms" in settings
        }
        return {topic: math.inf if ms < 0 else ms / 1e3 for topic, ms in kept_ms.items()}

    def missing(self) -> list[str]:
        """The topics that are not there, by the broker's names."""
        names = [self._prefix + topic for topic in TOPICS]
        there = self._cluster.partitions(names)
        return [name for name in names if name not in there]

    def apply(self, plan: list[TopicPlan]) -> None:
        """Does what the plan says.

        Raises:
            LogError: a part of it cannot be done; before that, nothing is changed.
        """
        problems = [one.problem for one in plan if one.problem]
        if problems:
            raise LogError(problems[0])
        for one in plan:
            if one.have is None:
                self._cluster.create(
                    one.topic, one.partitions, self._config.replication, one.settings
                )
                continue
            if one.grows:
                self._grow(one.topic, one.partitions)
            if one.changes:
                self._cluster.change(one.topic, one.changes)

    def close(self) -> None:
        """Lets go of the connection."""
        self._cluster.close()

    def _grow(self, topic: str, partitions: int) -> None:
        """Adds partitions up to a number, and returns when they can be used."""
        self._cluster.ask(lambda admin: admin.create_partitions({topic: partitions}))
        deadline = time.monotonic() + _KNOWN_WITHIN_S
        while self._cluster.partitions([topic]).get(topic, 0) < partitions:
            if time.monotonic() > deadline:
                raise LogError(
                    f"topic {topic} should have {partitions} partitions by now and does not show"
                    " them: look at the plan again in a while, and then whether the broker is well"
                )
            time.sleep(0.05)

    def _plan_one(
        self, topic: str, name: str, have: int | None, found: Mapping[str, str] | None
    ) -> TopicPlan:
        count = self._config.partitions_of(topic)
        settings = wanted_settings(topic, self._config)
        if have is None:
            return TopicPlan(name, CREATE, count, None, settings, settings, (), _WHY[topic])
        found = found or {}
        unreported = tuple(key for key in settings if key not in found)
        changes = {key: value for key, value in settings.items() if found.get(key, value) != value}
        problem = _problem(topic, name, have, count)
        more = have < count and not problem
        action = CANNOT if problem else CHANGE if changes or more else KEEP
        why = _WHY_MORE if more else _WHY[topic]
        return TopicPlan(name, action, count, have, settings, changes, unreported, why, problem)


def _problem(topic: str, name: str, have: int, count: int) -> str | None:
    """Why a topic with so many partitions cannot have `count`, and how to mend it."""
    if have == count or (have < count and topic == SAMPLES):
        return None
    cannot = f"topic {name} has {have} partitions and cannot have {count}:"
    if topic not in (EVENTS, SAMPLES):
        return (
            f"topic {name} has {have} partitions and Headrace reads it in one order, so it"
            " must have 1: use another topic_prefix in the log's URL, or delete the topic"
        )
    if have > count:
        return f"{cannot} Kafka takes none away; ask for {have}, or use another topic_prefix"
    return (
        f"{cannot} users would move to other partitions while their events wait in the old ones;"
        f" ask for {have}, or use another topic_prefix"
    )
