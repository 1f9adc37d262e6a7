"""The figures of the log: every partition by itself, and letters that wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infra.log_metrics import LogMetrics
from streaming.dead_letters import DeadLetter, Letters, encode_letter
from streaming.file_log import FileLog
from streaming.log import EVENTS, SAMPLES, Append, TopicPartition
from streaming.metrics import Metrics, parse

GROUPS = {"joiner": (EVENTS,), "aggregator": (EVENTS,), "trainer": (SAMPLES,)}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    with closing(FileLog(tmp_path / "log.db", partitions={EVENTS: 2})) as opened:
        yield opened


def told(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """By name, group, topic and partition, as far as there are these."""
    names = ("group", "topic", "partition")
    return {
        (one.name, *(one.labels[name] for name in names if name in one.labels)): one.value
        for one in parse(metrics.exposition()[0].decode())
    }


def test_each_partition_of_each_group_has_its_lag(log: FileLog) -> None:
    log.append([Append(EVENTS, b"{}", partition=p) for p in (0, 0, 0, 1)])
    place = TopicPartition(EVENTS, 0)
    with log.transaction("joiner") as transaction:
        transaction.append([Append(SAMPLES, b"")])
        transaction.advance({place: 0}, {place: 2})
    metrics = Metrics()
    look = LogMetrics(metrics, log, GROUPS).look
    look()
    found = told(metrics)
    assert found["headrace_partition_end_records", EVENTS, "0"] == 3
    assert found["headrace_partition_end_records", EVENTS, "1"] == 1
    assert found["headrace_group_position_records", "joiner", EVENTS, "0"] == 2
    assert found["headrace_group_lag_records", "joiner", EVENTS, "0"] == 1
    assert found["headrace_group_lag_records", "joiner", EVENTS, "1"] == 1
    assert found["headrace_group_lag_records", "aggregator", EVENTS, "0"] == 3
    assert found["headrace_group_lag_records", "trainer", SAMPLES, "0"] == 1
    log.append([Append(EVENTS, b"{}", partition=1)])
    look()
    assert told(metrics)["headrace_group_lag_records", "joiner", EVENTS, "1"] == 2


def test_letters_wait_until_they_are_driven_in_again(log: FileLog) -> None:
    metrics = Metrics()
    look = LogMetrics(metrics, log, GROUPS).look

    def waiting() -> float:
        look()
        return told(metrics)["headrace_dead_letters_waiting",]

    assert waiting() == 0
    log.append([encode_letter(DeadLetter(reason="why")) for _ in range(3)])
    assert waiting() == 3
    letters = Letters(log)
    letters.redrive(list(letters.waiting())[:2], [])
    assert waiting() == 1
    assert waiting() == 1


def test_a_log_that_is_away_leaves_the_last_figures(log: FileLog) -> None:
    log.append([Append(EVENTS, b"{}", partition=0)])
    metrics = Metrics()
    metrics_of_log = LogMetrics(metrics, log, GROUPS)
    metrics_of_log.look()
    log.close()
    metrics_of_log.look()
    assert told(metrics)["headrace_partition_end_records", EVENTS, "0"] == 1
