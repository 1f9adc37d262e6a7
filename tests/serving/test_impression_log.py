"""The impression log: what was answered comes back to `events`, once, and joins with its click."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from features.behaviour import Behaviour, BehaviourConfig
from features.catalog import Catalog
from serving.answers import Answer, Wanted
from serving.experiments import Arm, Experiment
from serving.impression_log import ImpressionLog, ImpressionLogConfig, impressions
from serving.metrics import ServingMetrics
from serving.recommender import OnlineFeatures, RecommendConfig, Recommender
from serving.replica import Replica
from streaming.arrow_record import read_batch
from streaming.decode import decode_events
from streaming.errors import LogError
from streaming.events import EventRules, encode_event, encode_events, parse_event
from streaming.file_log import FileLog
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, NOBODY, Append, Record
from streaming.metrics import Metrics
from streaming.samples import decode_samples
from trainers.versions import Version

Know = Callable[..., None]
RULES = EventRules()
NOW_US = 1_700_000_000_000_000


@pytest.fixture
def answer(
    catalog: Catalog, online_features: OnlineFeatures, patient: Callable[..., RecommendConfig],
    random_version: Callable[..., Version], item_ids: list[int], know: Know,
) -> Answer:  # fmt: skip
    """Three items for a user with a history, who is in an arm."""
    know("u", ["i3", "i4"])
    replica = Replica()
    replica.take(random_version(item_ids, number=3))
    config = patient(experiments={"titles": Experiment({"a": Arm()})})
    recommender = Recommender(replica, catalog, online_features, config)
    return recommender.recommend(Wanted("u", 3, scenario="home"))


def records(log: FileLog) -> list[Record]:
    return log.read(log.positions(NOBODY, [EVENTS]), 10_000, timeout_s=0)


def events(log: FileLog) -> list[dict[str, Any]]:
    rows = [row for record in records(log) for row in read_batch(record.value).to_pylist()]
    return [{**row, "attributes": json.loads(row["attributes"])} for row in rows]


@contextmanager
def running(log: Any, metrics: ServingMetrics, **config: Any) -> Iterator[ImpressionLog]:
    made = ImpressionLog(log, RULES, ImpressionLogConfig(**config), metrics)
    stopping = threading.Event()
    thread = threading.Thread(target=made.run, args=(stopping,))
    thread.start()
    try:
        yield made
    finally:
        stopping.set()
        thread.join(60)
    assert not thread.is_alive()


def logged(metrics: ServingMetrics, outcome: str) -> float:
    return metrics.registry.get_sample_value(
        "headrace_impressions_total", {"outcome": outcome}
    ) or 0.0  # fmt: skip


def test_every_item_of_an_answer_becomes_an_impression(log: FileLog, answer: Answer) -> None:
    metrics = ServingMetrics(Metrics())
    with running(log, metrics) as impression_log:
        impression_log.note(answer)
    found = events(log)
    assert [one["item_id"] for one in found] == [one.item.item_id for one in answer.items]
    assert [one["position"] for one in found] == [0, 1, 2]
    assert answer.version is not None
    for event, one in zip(found, answer.items, strict=True):
        assert (event["kind"], event["user_id"], event["scenario"]) == ("impression", "u", "home")
        assert event["request_id"] == answer.request_id
        said = event["attributes"]
        assert said["score"] == pytest.approx(one.score)
        assert (said["source"], said["version"]) == (one.source, answer.version.name)
        assert said["arms"] == {"titles": "a"}
    assert found[0]["attributes"]["features"]["items"] == list(answer.read["items"])
    assert "features" not in found[1]["attributes"]
    assert (logged(metrics, "logged"), logged(metrics, "lost")) == (3, 0)


def test_what_is_not_wanted_is_not_logged(log: FileLog, answer: Answer) -> None:
    with running(log, ServingMetrics(Metrics()), enabled=False) as impression_log:
        assert not impression_log.enabled
        impression_log.note(answer)
    assert events(log) == []
    with running(log, ServingMetrics(Metrics()), features=False) as impression_log:
        impression_log.note(answer)
    assert all("features" not in one["attributes"] for one in events(log))


def test_a_log_that_fails_delays_impressions_and_doubles_none(log: FileLog, answer: Answer) -> None:
    class Failing:
        """Takes what it is given, and says the first time that it did not."""

        def __init__(self) -> None:
            self.failures = 1

        def append(self, appends: list[Append]) -> None:
            log.append(appends)
            if self.failures:
                self.failures -= 1
                raise LogError("the answer was lost on the way")

        def __getattr__(self, name: str) -> Any:
            return getattr(log, name)

    metrics = ServingMetrics(Metrics())
    with running(Failing(), metrics) as impression_log:
        impression_log.note(answer)
    ids = [one["event_id"] for one in events(log)]
    assert len(ids) == 6  # it is in the log twice, under the same ids, and counts once:
    assert len(set(ids)) == 3


def test_what_a_log_never_takes_is_lost_at_the_end_and_counted(
    log: FileLog, answer: Answer
) -> None:
    class Away:
        def append(self, appends: list[Append]) -> None:
            raise LogError("nobody is there")

        def partition_of(self, topic: str, key: bytes) -> int:
            return 0

    metrics = ServingMetrics(Metrics())
    with running(Away(), metrics, close_timeout_s=0.1) as impression_log:
        impression_log.note(answer)
    assert (logged(metrics, "logged"), logged(metrics, "lost")) == (0, 3)


def test_what_is_more_than_may_wait_is_lost_and_counted(log: FileLog, answer: Answer) -> None:
    metrics = ServingMetrics(Metrics())
    waiting = ImpressionLog(log, RULES, ImpressionLogConfig(answers=2), metrics)
    for _ in range(5):
        waiting.note(answer)  # nobody takes them yet
    assert logged(metrics, "lost") == 9


def test_impressions_meet_the_click_that_comes_of_them(log: FileLog, answer: Answer) -> None:
    with running(log, ServingMetrics(Metrics())) as impression_log:
        impression_log.note(answer)
    clicked = answer.items[1].item.item_id
    click = {
        "kind": "click", "user_id": "u", "item_id": clicked, "request_id": answer.request_id,
    }  # fmt: skip
    now_us = int(datetime.now(UTC).timestamp() * 1e6)
    log.append([encode_event(parse_event(json.dumps(click).encode(), RULES, now_us))])
    joiner = Joiner(JoinerConfig(), RULES, Behaviour(BehaviourConfig()))
    appended = joiner.on_batch(records(log))
    (row,) = [
        row
        for append in appended
        for row in decode_samples(
            Record(append.topic, 0, 0, append.key, append.value, 0)
        ).to_pylist()
    ]
    assert (row["kind"], row["label_click"], row["position"]) == ("click", 1.0, 1)
    assert row["scenario"] == "home"
    assert row["negative_rate"] is not None  # it was joined with its impression


def test_impressions_keep_the_rules_of_events(answer: Answer) -> None:
    """They are not checked on their way, as what is posted is."""
    batch = impressions([(answer, NOW_US), (answer, NOW_US + 1)], features=True)
    taken = decode_events([Record(EVENTS, 0, 0, None, encode_events(batch).value, NOW_US)], RULES)
    assert not taken.rejected
    assert taken.events.num_rows == 6
    ids = batch["event_id"].to_pylist()
    assert ids == [f"{answer.request_id}/{n}" for n in range(3)] * 2
    assert batch["at"].cast(pa.int64()).to_pylist() == [NOW_US] * 3 + [NOW_US + 1] * 3


def test_the_impressions_of_a_user_lie_where_his_events_lie(answer: Answer, tmp_path: Path) -> None:
    log = FileLog(tmp_path / "four.db", partitions={EVENTS: 4})
    with running(log, ServingMetrics(Metrics())) as impression_log:
        for number in range(40):
            impression_log.note(replace(answer, user_id=f"u{number}"))
    found = {
        (row["user_id"], record.partition)
        for record in records(log)
        for row in read_batch(record.value).to_pylist()
    }
    expected = {(f"u{n}", log.partition_of(EVENTS, b"u%d" % n)) for n in range(40)}
    assert found == expected
    log.close()
