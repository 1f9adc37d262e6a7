"""What joiners tell: every event once, whoever read it, and how soon it was joined."""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from features.behaviour import Behaviour, BehaviourConfig
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner, JoinerConfig
from streaming.joiner_metrics import JoinerMetrics
from streaming.log import EVENTS, Append, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.metrics import Metrics, parse

LIKE = {"kind": "like", "user_id": "u", "item_id": "i"}
SHOWN = {"kind": "impression", "user_id": "u", "item_id": "i", "request_id": "r"}
CONFIG = JoinerConfig(impressions=ImpressionsConfig({"click": Label(600.0)}))


class Process:
    """What one process tells of the joiners in it."""

    def __init__(self, log: FileLog, root: Path) -> None:
        self._log = log
        self._root = root
        # A second passes whenever somebody looks: sums are told once a second.
        self._clock = itertools.count(time.time()).__next__
        self.metrics = Metrics()
        self._observer = JoinerMetrics(self.metrics)

    def joiner(self, partition: int = 0) -> Loop[Joiner]:
        place = TopicPartition(EVENTS, partition)
        return Loop(
            self._log, "joiner", [EVENTS],
            lambda state: Joiner(
                CONFIG, EventRules(), Behaviour(BehaviourConfig(), state), state, partition
            ),
            self._root / str(partition), only=[place], observer=self._observer,
            config=LoopConfig(cut_every_s=1e9), clock=self._clock,
        )  # fmt: skip

    def told(self) -> dict[str, float]:
        """By name and label, such as `headrace_events_total taken`."""
        samples = parse(self.metrics.exposition()[0].decode())
        return {" ".join([one.name, *one.labels.values()]): one.value for one in samples}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    with closing(FileLog(tmp_path / "log.db", partitions={EVENTS: 2})) as opened:
        yield opened


def send(log: FileLog, events: Sequence[Any], partition: int = 0) -> None:
    values = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in events]
    log.append([Append(EVENTS, value, partition=partition) for value in values])


def test_it_tells_what_became_of_each_event(log: FileLog, tmp_path: Path) -> None:
    process = Process(log, tmp_path)
    loop = process.joiner()
    like = {**LIKE, "event_id": "once"}
    send(log, [SHOWN, like, like, {**SHOWN, "kind": "click"}, b"{", {**LIKE, "kind": "dance"}])
    send(log, [{**LIKE, f"invented{n}": 1} for n in range(100)])
    while loop.turn():
        pass
    told = process.told()
    assert told["headrace_events_total taken"] == 3
    assert told["headrace_events_total repeated"] == 1
    assert told["headrace_events_total rejected"] == 102
    rejected = {
        name.removeprefix("headrace_events_rejected_total "): value
        for name, value in told.items()
        if name.startswith("headrace_events_rejected_total")
    }
    assert rejected == {"event": 1, "kind": 1, "unknown": 100}
    assert told["headrace_joiner_impressions_total opened"] == 1
    assert told["headrace_joiner_impressions_total positives"] == 1
    assert told["headrace_joiner_impressions_open"] == 1
    assert told["headrace_joiner_window_seconds click"] == 600
    assert time.time() - told["headrace_joiner_watermark_timestamp_seconds"] < 60
    assert told["headrace_loop_records_total joiner"] == 106


def test_hops_are_timed_from_the_event_and_from_the_log(log: FileLog, tmp_path: Path) -> None:
    process = Process(log, tmp_path)
    send(log, [{**LIKE, "at": "2024-01-01T00:00:00Z"}, LIKE])
    process.joiner().turn()
    told = process.told()
    # What is replayed says nothing of how soon events come; but it is joined like any other.
    assert told["headrace_freshness_seconds_count logged"] == 1
    assert told["headrace_freshness_seconds_count joined"] == 2
    assert 0 < told["headrace_freshness_seconds_sum joined"] < 60


def test_what_another_process_has_told_of_is_not_told_again(log: FileLog, tmp_path: Path) -> None:
    first = Process(log, tmp_path)
    loop = first.joiner()
    send(log, [SHOWN, LIKE])
    loop.turn()
    loop.cut()
    send(log, [LIKE])
    loop.turn()
    del loop  # without a cut: the next one replays the last event
    second = Process(log, tmp_path)
    again = second.joiner()
    assert "headrace_events_total taken" not in second.told()
    assert second.told()["headrace_joiner_impressions_open"] == 1
    send(log, [LIKE])
    again.turn()
    assert first.told()["headrace_events_total taken"] == 3
    assert second.told()["headrace_events_total taken"] == 1


def test_partitions_are_told_of_together_and_a_lost_one_no_more(
    log: FileLog, tmp_path: Path
) -> None:
    process = Process(log, tmp_path)
    loops = [process.joiner(partition) for partition in (0, 1)]
    for partition, requests in enumerate(("ab", "c")):
        send(log, [{**SHOWN, "request_id": r} for r in requests], partition)
    for loop in loops:
        loop.turn()
    assert process.told()["headrace_joiner_impressions_open"] == 3
    assert process.told()["headrace_events_total taken"] == 3
    loops.pop()
    del loop
    gc.collect()
    send(log, [LIKE])
    loops[0].turn()
    assert process.told()["headrace_joiner_impressions_open"] == 2
    assert process.told()["headrace_events_total taken"] == 4


def test_a_loop_tells_where_its_time_goes(log: FileLog, tmp_path: Path) -> None:
    process = Process(log, tmp_path)
    loop = process.joiner()
    send(log, [LIKE])
    loop.turn()
    loop.turn()
    loop.cut()
    told = process.told()
    assert told["headrace_loop_turns_total joiner"] == 2
    for part in ("read", "step", "execute", "commit", "cut"):
        assert told[f"headrace_loop_seconds_total joiner {part}"] > 0, part
    assert time.time() - told["headrace_loop_last_turn_timestamp_seconds joiner"] < 60
