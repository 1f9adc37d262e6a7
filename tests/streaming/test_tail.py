"""The tail: the same state as the loop's, and no trace of it in the log or among the cuts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from streaming.artefact import Artefact
from streaming.errors import ArtefactError
from streaming.log import EVENTS, TOPICS, Append, Log, Record, TopicPartition
from streaming.loop import Loop
from streaming.memory_log import MemoryLog
from streaming.tail import Tail

PLACE = TopicPartition(EVENTS, 0)


class Seen:
    """Remembers every value in its order, and emits what a tail must not append."""

    def __init__(self, state: Artefact | None) -> None:
        self.values: list[int] = [] if state is None else state.shards["values"]["v"].to_pylist()

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        self.values += [int(record.value) for record in records]
        return [Append(EVENTS, record.value) for record in records if int(record.value) < 0]

    def on_time(self, now_us: int) -> list[Append]:
        return []

    def snapshot(self) -> Artefact:
        return Artefact({}, {"values": pa.table({"v": pa.array(self.values, pa.int64())})})


@pytest.fixture
def log(request: pytest.FixtureRequest) -> MemoryLog:
    return MemoryLog(request.node.name)


def append(log: Log, *values: int) -> None:
    log.append([Append(EVENTS, str(value).encode()) for value in values])


def loop(log: Log, cuts: Path) -> Loop[Seen]:
    return Loop(log, "group", [EVENTS], Seen, cuts)


def tail(log: Log, cuts: Path) -> Tail[Seen]:
    return Tail(log, [EVENTS], Seen, cuts)


def test_it_goes_on_from_the_loops_cut_and_ends_where_the_loop_does(
    log: MemoryLog, tmp_path: Path
) -> None:
    append(log, 1, 2, 3)
    kept = loop(log, tmp_path)
    kept.turn()
    kept.cut()
    append(log, 4, 5)
    following = tail(log, tmp_path)
    assert following.step.values == [1, 2, 3]  # from the cut, not from the log
    assert following.behind == 2
    while following.behind:
        assert following.turn() > 0
    kept.turn()
    assert following.step.values == kept.step.values == [1, 2, 3, 4, 5]
    append(log, 6)
    following.turn()
    assert following.step.values[-1] == 6
    assert following.behind == 0  # what came later was not there at its beginning


def test_it_leaves_no_trace(log: MemoryLog, tmp_path: Path) -> None:
    append(log, -1, 2)
    kept = loop(log, tmp_path)
    before = log.ends(TOPICS), log.positions("group", TOPICS)
    following = tail(log, tmp_path)
    following.turn()
    assert following.step.values == [-1, 2]
    assert (log.ends(TOPICS), log.positions("group", TOPICS)) == before
    assert not list(tmp_path.iterdir())
    kept.turn()  # nobody has fenced it
    assert kept.step.values == [-1, 2]


def test_without_a_cut_it_reads_from_the_very_beginning(log: MemoryLog, tmp_path: Path) -> None:
    append(log, 1, 2)
    following = tail(log, tmp_path / "none")
    assert following.behind == 2
    following.turn()
    assert following.step.values == [1, 2]


class Forgetful(MemoryLog):
    """A log in which the first records are gone."""

    first = 0

    def positions(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, int]:
        return {
            place: max(at, self.first) for place, at in super().positions(group, topics).items()
        }


def test_what_the_log_no_longer_holds_is_named(tmp_path: Path) -> None:
    log = Forgetful("forgetful")
    append(log, *range(10))
    log.first = 3
    with pytest.raises(ArtefactError, match=r"no cut in .* no longer holds the first 3.*headrace"):
        tail(log, tmp_path)
    log.first = 0
    kept = loop(log, tmp_path)
    kept.turn()
    kept.cut()
    append(log, *range(10))
    log.first = 15
    with pytest.raises(ArtefactError, match=r"ends at 10 in events/0, and the log begins at 15"):
        tail(log, tmp_path)


def test_a_cut_of_another_log_is_named(log: MemoryLog, tmp_path: Path) -> None:
    append(log, 1, 2, 3)
    kept = loop(log, tmp_path)
    kept.turn()
    kept.cut()
    with pytest.raises(ArtefactError, match=r"ahead of the log \(events/0: 3 > 0\): name the log"):
        tail(MemoryLog("another"), tmp_path)
