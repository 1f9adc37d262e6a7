"""The SDK's producer: what was sent is in the log once, or the sender knows that it is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streaming.errors import Backpressure, EventRejected, LogError
from streaming.events import Event, EventRules, key_of, parse_event
from streaming.intake import Intake
from streaming.log import EVENTS, Append, Log, Record, TopicPartition
from streaming.memory_log import Fault, MemoryLog
from streaming.producer import EventProducer, EventProducerConfig

RULES = EventRules()
LIKE: dict[str, Any] = {"kind": "like", "user_id": "u", "item_id": "i"}
AT_ONCE = EventProducerConfig(linger_s=0)
NEVER = EventProducerConfig(linger_s=1_000)


class Barred(MemoryLog):
    """A log that takes nothing while it is barred."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()

    def append(self, records: Sequence[Append]) -> None:
        if not self.opened.is_set():
            raise LogError("the log is barred")
        super().append(records)


def read_all(log: Log) -> list[Record]:
    starts = dict.fromkeys(log.ends([EVENTS]), 0)
    return log.read(starts, limit=1_000_000, timeout_s=0)


def taken(log: Log) -> list[str]:
    """The ids of the events that a consumer gets."""
    decoded = Intake(RULES).take(read_all(log))
    assert decoded.rejected == []
    ids: list[str] = decoded.events["event_id"].to_pylist()
    return ids


def send_many(producer: EventProducer, count: int, **change: Any) -> list[str]:
    return [producer.send({**LIKE, **change, "event_id": f"{n}"}) for n in range(count)]


def test_an_event_comes_out_as_it_was_sent_with_an_id_and_a_time() -> None:
    log = MemoryLog()
    with EventProducer(log) as producer:
        first = producer.send(**LIKE, position=3, attributes={"page": ["a", 1]})
        second = producer.send(Event(kind="user", user_id="v"))
        third = producer.send({"kind": "user"}, user_id="w", event_id="mine")
    (*rows,) = Intake(RULES).take(read_all(log)).events.to_pylist()
    assert [row["event_id"] for row in rows] == [first, second, third]
    assert third == "mine"
    assert rows[0]["attributes"] == '{"page":["a",1]}'
    assert (rows[0]["position"], rows[1]["user_id"], rows[2]["user_id"]) == (3, "v", "w")
    assert all(abs(row["at"].timestamp() - time.time()) < 60 for row in rows)


def test_a_record_leaves_when_it_is_full() -> None:
    log = MemoryLog()
    config = EventProducerConfig(batch_events=10, linger_s=1_000)
    with EventProducer(log, config) as producer:
        send_many(producer, 10)
        while not read_all(log):
            time.sleep(0.001)
        send_many(producer, 5)
        assert len(read_all(log)) == 1
    assert len(read_all(log)) == 2


def test_a_record_leaves_when_it_has_lingered() -> None:
    log = MemoryLog()
    with EventProducer(log, EventProducerConfig(linger_s=0.01)) as producer:
        sent = [producer.send(LIKE)]
        while taken(log) != sent:
            time.sleep(0.001)


def test_what_was_sent_before_a_flush_is_in_the_log_after_it() -> None:
    log = MemoryLog()
    with EventProducer(log, NEVER) as producer:
        sent = send_many(producer, 3)
        producer.flush()
        assert taken(log) == sent
        producer.flush()


def test_events_of_one_user_share_a_partition_with_those_in_json_in_the_order_of_sending() -> None:
    log = MemoryLog(partitions=5)
    users = [f"u{n % 17}" for n in range(500)]
    with EventProducer(log, EventProducerConfig(batch_events=20, linger_s=0.001)) as producer:
        for n, user in enumerate(users):
            producer.send({**LIKE, "user_id": user, "event_id": f"{n}"})
    found: dict[str, list[int]] = {}
    for record in read_all(log):
        for row in Intake(RULES).take([record]).events.to_pylist():
            key = key_of(Event(kind="like", user_id=row["user_id"]))
            assert record.partition == log.partition_of(EVENTS, key)
            found.setdefault(row["user_id"], []).append(int(row["event_id"]))
    assert found == {u: [n for n, v in enumerate(users) if v == u] for u in set(users)}


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({**LIKE, "kind": "dance"}, "kind"),
        ({**LIKE, "item_id": None}, "item_id"),
        ({**LIKE, "user_id": 7}, "user_id"),
        ({**LIKE, "colour": "red"}, "colour"),
        ({**LIKE, "value": float("nan")}, "value"),
        ({**LIKE, "attributes": {"x": object()}}, "event"),
        ({**LIKE, "query": "\ud800"}, "event"),
        ({**LIKE, "query": "x" * 65_536}, "event"),
    ],
)
def test_what_breaks_a_rule_is_refused_at_once(event: dict[str, Any], field: str) -> None:
    log = MemoryLog()
    with EventProducer(log) as producer:
        with pytest.raises(EventRejected) as caught:
            producer.send(event)
        assert caught.value.field == field
        deep: dict[str, Any] = {}
        for _ in range(2_000):
            deep = {"a": deep}
        with pytest.raises(EventRejected):
            producer.send(LIKE, attributes=deep)
    assert read_all(log) == []


def test_attributes_may_be_changed_after_they_were_sent() -> None:
    log = MemoryLog()
    attributes = {"a": [1]}
    with EventProducer(log, NEVER) as producer:
        producer.send(LIKE, attributes=attributes)
        attributes["a"].append(2)
    (row,) = Intake(RULES).take(read_all(log)).events.to_pylist()
    assert row["attributes"] == '{"a":[1]}'


def test_no_more_events_wait_than_may() -> None:
    log = Barred()
    config = EventProducerConfig(max_pending=3, linger_s=0, max_retry_s=0.1)
    with EventProducer(log, config) as producer:
        sent = send_many(producer, 3)
        with pytest.raises(Backpressure, match="does not keep up.*send the event again") as caught:
            producer.send(LIKE)
        assert 0 <= caught.value.retry_after_s <= 0.1
        started_s = time.monotonic()
        with pytest.raises(Backpressure):
            producer.send(LIKE, timeout_s=0.05)
        assert time.monotonic() - started_s >= 0.05
        log.opened.set()
        sent.append(producer.send(LIKE, timeout_s=60))
    assert taken(log) == sent


def test_no_more_bytes_wait_than_may_and_a_large_event_goes_alone() -> None:
    log = Barred()
    config = EventProducerConfig(max_pending_bytes=1_000, max_retry_s=0.1)
    with EventProducer(log, config) as producer:
        sent = [producer.send(LIKE, query="x" * 2_000)]
        with pytest.raises(Backpressure):
            producer.send(LIKE)
        log.opened.set()
        sent.append(producer.send(LIKE, timeout_s=60))
    assert taken(log) == sent


@pytest.mark.parametrize("kind", ["abort", "unknown", "duplicate"])
def test_a_log_that_fails_gets_every_event_once(kind: Any) -> None:
    log = MemoryLog(faults=[Fault(kind, at=0), Fault(kind, at=2), Fault(kind, at=3)])
    with EventProducer(log, EventProducerConfig(batch_events=7, linger_s=0.001)) as producer:
        sent = send_many(producer, 50)
    assert sorted(taken(log)) == sorted(sent)
    assert len(read_all(log)) > 1


def test_what_could_not_be_delivered_is_counted_kept_and_may_be_sent_again() -> None:
    log = Barred()
    producer = EventProducer(log, EventProducerConfig(close_timeout_s=0.05))
    sent = send_many(producer, 4, user_id="a")
    with pytest.raises(LogError, match="4 events are not delivered yet"):
        producer.flush(timeout_s=0.01)
    with pytest.raises(LogError, match=r"4 events were not delivered \(the log is barred\)"):
        producer.close()
    assert [event.event_id for event in producer.undelivered] == sent
    with pytest.raises(LogError, match="the producer is closed"):
        producer.send(LIKE)
    producer.close()

    log.opened.set()
    with EventProducer(log) as again:
        for event in producer.undelivered:
            again.send(event)
    assert taken(log) == sent
    assert again.undelivered == []


def test_a_defect_of_the_log_is_told_to_whoever_sends() -> None:
    class Broken(MemoryLog):
        def append(self, records: Sequence[Append]) -> None:
            raise ZeroDivisionError("by zero")

    producer = EventProducer(Broken(), AT_ONCE)
    producer.send(LIKE)
    with pytest.raises(LogError, match="by zero") as caught:
        producer.flush()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(LogError, match="by zero"):
        producer.send(LIKE)
    with pytest.raises(LogError, match="1 events were not delivered"):
        producer.close()


def test_many_threads_may_send() -> None:
    log = MemoryLog(partitions=3)
    config = EventProducerConfig(batch_events=16, linger_s=0.001, max_pending=64)
    with EventProducer(log, config) as producer, ThreadPoolExecutor(8) as threads:

        def send(thread: int) -> list[str]:
            user = {**LIKE, "user_id": f"u{thread}"}
            return [producer.send(user, event_id=f"{thread}-{n}", timeout_s=60) for n in range(200)]

        sent = [event_id for ids in threads.map(send, range(8)) for event_id in ids]
    assert sorted(taken(log)) == sorted(sent)


def test_a_producer_that_sent_nothing_leaves_nothing() -> None:
    log = MemoryLog()
    with EventProducer(log) as producer:
        producer.flush()
    assert log.ends([EVENTS]) == {TopicPartition(EVENTS, 0): 0}


def test_what_is_sent_means_what_a_single_event_means() -> None:
    log = MemoryLog()
    event = {**LIKE, "event_id": "e", "at": "2024-05-06T07:08:09+02:00", "scenario": "home"}
    with EventProducer(log) as producer:
        producer.send(event)
    (row,) = Intake(RULES).take(read_all(log)).events.to_pylist()
    parsed = parse_event(event, RULES, time.time_ns() // 1000)
    assert {name: row[name] for name in ("at", "scenario", "item_id")} == {
        "at": parsed.at, "scenario": "home", "item_id": "i",
    }  # fmt: skip
