"""The replay into three partitions of a real broker: each event once, each user in one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from benchmarks._broker import Broker
from streaming.decode import decode_events
from streaming.events import EventRules, microseconds
from streaming.kafka_client import Cluster
from streaming.log import EVENTS, TOPICS, Log, TopicPartition
from streaming.open_log import open_log
from streaming.sources.open_bandit import OpenBandit
from streaming.sources.replay import Replay, ReplayConfig

PLACES = [TopicPartition(EVENTS, partition) for partition in range(3)]
WHOLE = 6_000


@pytest.fixture
def log(broker: Broker) -> Iterator[Log]:
    cluster = Cluster(broker.url)
    for topic in TOPICS:
        cluster.create(topic, 3 if topic == EVENTS else 1, 1, {})
    cluster.close()
    log = open_log(broker.url)
    yield log
    log.close()


def replay(log: Log, source: OpenBandit, limit: int) -> Replay:
    config = ReplayConfig(record_size=100, limit=limit, close_after_s=3_600)
    work = Replay(log, source, lambda: 0, config)
    work.run(threading.Event())
    return work


def test_a_replay_goes_on_where_it_was_and_repeats_nothing(log: Log) -> None:
    source = OpenBandit()
    for limit in (1_700, WHOLE):
        assert replay(log, source, limit).progress.done == limit
    assert replay(log, source, WHOLE).progress.done == WHOLE
    found: list[str] = []
    for place in PLACES:
        records = []
        position = 0
        end = log.ends([EVENTS])[place]
        while position < end:
            records += log.read({place: position}, 1_000, timeout_s=5)
            position = records[-1].offset + 1
        rows = decode_events(records, EventRules()).events.to_pylist()
        ticks = [row for row in rows if row["kind"] == "tick"]
        expected = [
            f"tick/open-bandit/{end}/{place.partition}/{microseconds(tick['at'])}"
            for end, tick in zip((1_700, WHOLE), ticks, strict=True)
        ]
        assert [tick["event_id"] for tick in ticks] == expected
        events = [row for row in rows if row["kind"] != "tick"]
        assert [row["at"] for row in events] == sorted(row["at"] for row in events)
        for row in events:
            key = (row["user_id"] or row["item_id"]).encode()
            assert log.partition_of(EVENTS, key) == place.partition
        found += [row["event_id"] for row in events]
    assert sorted(found) == sorted(source.batch(0, WHOLE)["event_id"].to_pylist())
