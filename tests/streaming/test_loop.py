"""The loop: each record exactly once, whatever the moment at which the process dies."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from streaming.artefact import Artefact, read_artefact, read_manifest
from streaming.cuts import KEYED, CutDirectory
from streaming.errors import ArtefactCorrupt, ArtefactError, Fenced
from streaming.file_log import FileLog
from streaming.log import EVENTS, Append, Log, Record, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.memory_log import MemoryLog

TOTALS = "totals"
TOPICS = (EVENTS, TOTALS)
PARTITIONS = 2
RECORDS = 300
EVENTS_0 = TopicPartition(EVENTS, 0)
TOTALS_0 = TopicPartition(TOTALS, 0)


class Counting:
    """For each record, how many its key has had: a lost or repeated record shows in all that
    follow."""

    def __init__(self, state: Artefact | None) -> None:
        self.counts: dict[str, int] = {}
        self.taken: list[int] = []
        if state is not None:
            table = state.shards["counts"]
            keys, numbers = table["key"].to_pylist(), table["count"].to_pylist()
            self.counts = dict(zip(keys, numbers, strict=True))

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        outputs = []
        for record in records:
            key = (record.key or b"").decode()
            self.counts[key] = self.counts.get(key, 0) + 1
            told = f"{key} has {self.counts[key]}, {record.value.decode()}"
            outputs.append(Append(TOTALS, told.encode(), record.key))
            self.taken.append(record.offset)
        return outputs

    def on_time(self, now_us: int) -> list[Append]:
        return []

    def snapshot(self) -> Artefact:
        keys = pa.array(list(self.counts), pa.string())
        numbers = pa.array(list(self.counts.values()), pa.int64())
        return Artefact({"keys": len(keys)}, {"counts": pa.table({"key": keys, "count": numbers})})


RECENT = 8  # records of each partition that `Tallying` remembers


class Tallying(Counting):
    """Counts, and remembers the last few records, in rows that come and go beside many others."""

    def __init__(self, state: Artefact | None) -> None:
        super().__init__(state)
        self.clock = 0
        self.settled = 0
        self.recent = dict.fromkeys(range(-2_000, 0), 0)
        self.changed: dict[int, int] = {}  # the clock at the last change of a row
        if state is not None:
            ids, counts = (state.shards["recent"][name].to_pylist() for name in ("id", "count"))
            self.recent = dict(zip(ids, counts, strict=True))

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        outputs = []
        for record in records:
            self.clock += 1
            outputs += super().on_batch([record])
            born = 1_000 * record.partition + record.offset
            self.recent[born] = self.counts[(record.key or b"").decode()]
            self.changed[born] = self.clock
            if record.offset >= RECENT:
                del self.recent[born - RECENT]
                self.changed[born - RECENT] = self.clock
        return outputs

    def snapshot(self) -> Artefact:
        state = super().snapshot()
        return Artefact(state.meta, {**state.shards, "recent": self._rows(list(self.recent))})

    def mark(self) -> int:
        return self.clock

    def changes(self, since: int) -> Artefact:
        assert since >= self.settled
        ids = [i for i, at in self.changed.items() if at > since]
        gone = pa.table({"id": pa.array([i for i in ids if i not in self.recent], pa.int64())})
        changed = self._rows([i for i in ids if i in self.recent])
        state = super().snapshot()
        return Artefact(state.meta, {**state.shards, "recent": changed, "recent.gone": gone})

    def settle(self, mark: int) -> None:
        self.settled = mark
        self.changed = {i: at for i, at in self.changed.items() if at > mark}

    def _rows(self, ids: list[int]) -> pa.Table:
        counts = pa.array([self.recent[i] for i in ids], pa.int64())
        return pa.table({"id": pa.array(ids, pa.int64()), "count": counts}, metadata=KEYED)


@dataclass
class Ticking:
    """A clock that is a second further each time it is asked."""

    now: Iterator[int] = field(default_factory=lambda: itertools.count(1_000))

    def __call__(self) -> float:
        return float(next(self.now))


def open_log(home: Path) -> FileLog:
    return FileLog(home / "log.db", partitions=PARTITIONS, topics=TOPICS)


def make_loop(home: Path, log: Log, **options: Any) -> Loop[Counting]:
    """Six records a turn at most, and a cut after every few turns."""
    options.setdefault("config", LoopConfig(limit=6, idle_s=0, cut_every_s=9))
    options.setdefault("clock", Ticking())
    return Loop(log, "counter", [EVENTS], Counting, home / "cuts", **options)


IN_BACKGROUND = LoopConfig(limit=6, idle_s=0, cut_every_s=9, background=True, deltas=2)
BY_HAND = LoopConfig(limit=6, idle_s=0, cut_every_s=1e9)


def make_tallying(home: Path, log: Log, **options: Any) -> Loop[Tallying]:
    """As `make_loop`, with a step that tells what changed, in the background."""
    options.setdefault("config", IN_BACKGROUND)
    options.setdefault("clock", Ticking())
    return Loop(log, "counter", [EVENTS], Tallying, home / "cuts", **options)


def run_to_the_end(loop: Loop[Any], patient: bool = False) -> None:
    """Learns all there is; one that is patient makes a cut every five turns, and waits for it."""
    turns = 0
    while loop.turn():
        turns += 1
        if patient and turns % 5 == 0:
            loop.cut()
    loop.cut()


def totals(log: FileLog) -> list[Record]:
    return [
        record
        for place, end in log.ends([TOTALS]).items()
        for record in log.read({place: 0}, max(1, end), 0)
    ]


def contents(log: FileLog) -> list[tuple[int, int, bytes | None, bytes]]:
    return [(r.partition, r.offset, r.key, r.value) for r in totals(log)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a log of 300 events of 5 keys."""
    rng = random.Random(0)
    log = open_log(tmp_path)
    keys = (b"key %d" % rng.randrange(5) for _ in range(RECORDS))
    log.append([Append(EVENTS, b"event %d" % n, key) for n, key in enumerate(keys)])
    log.close()
    return tmp_path


@pytest.fixture
def log(home: Path) -> Iterator[FileLog]:
    log = open_log(home)
    yield log
    log.close()


@pytest.fixture
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a loop that nothing happens to writes about the events in `home`."""
    other = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(home / "log.db", other / "log.db")
    log = open_log(other)
    run_to_the_end(make_loop(other, log))
    expected = contents(log)
    log.close()
    assert len(expected) == RECORDS
    return expected


@pytest.fixture
def small(tmp_path: Path) -> Iterator[FileLog]:
    """A log with one partition and nothing in it; its loops keep their cuts beside it."""
    log = FileLog(tmp_path / "log.db", topics=TOPICS)
    yield log
    log.close()


def feed(log: FileLog, count: int) -> None:
    log.append([Append(EVENTS, b"event") for _ in range(count)])


def cut_names(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "cuts").iterdir())


# Without a death


def test_every_record_is_counted_once_and_in_order(log: FileLog, home: Path) -> None:
    run_to_the_end(make_loop(home, log))
    told: dict[bytes, list[bytes]] = {}
    for record in totals(log):
        told.setdefault(record.key or b"", []).append(record.value.split(b",")[0])
    for key, values in told.items():
        assert values == [b"%b has %d" % (key, n) for n in range(1, len(values) + 1)]
    assert sum(map(len, told.values())) == RECORDS
    assert log.positions("counter", [EVENTS]) == log.ends([EVENTS])


def test_the_points_of_the_commit_order_are_reached_in_order(
    small: FileLog, tmp_path: Path
) -> None:
    reached: list[int] = []
    loop = make_loop(tmp_path, small, reached=reached.append)
    assert reached == [0]
    feed(small, 3)
    assert loop.turn() == 3
    assert reached == [0, 1, 2, 3, 4]
    loop.cut()
    assert reached == [0, 1, 2, 3, 4, 5, 6]


def test_a_turn_takes_no_more_than_the_limit(small: FileLog, tmp_path: Path) -> None:
    feed(small, 8)
    loop = make_loop(tmp_path, small)
    assert [loop.turn() for _ in range(3)] == [6, 2, 0]


def test_outputs_and_positions_are_committed_together(small: FileLog, tmp_path: Path) -> None:
    feed(small, 4)
    seen: list[tuple[int, int]] = []
    watching = FileLog(tmp_path / "log.db", topics=TOPICS)

    def look(_: int) -> None:
        position = watching.positions("counter", [EVENTS])[EVENTS_0]
        seen.append((position, watching.ends([TOTALS])[TOTALS_0]))

    loop = make_loop(tmp_path, small, reached=look)
    loop.turn()
    assert seen == [(0, 0)] * 4 + [(4, 4)]  # at 0, 1, 2, 3, and then at 4
    watching.close()


def test_time_is_told_after_every_turn_in_microseconds(small: FileLog, tmp_path: Path) -> None:
    told: list[int] = []

    class Timed(Counting):
        def on_time(self, now_us: int) -> list[Append]:
            told.append(now_us)
            return [Append(TOTALS, b"tick")]

    loop = Loop(
        small, "g", [EVENTS], Timed, tmp_path / "cuts",
        config=LoopConfig(idle_s=0), clock=lambda: 12.5,
    )  # fmt: skip
    loop.turn()
    feed(small, 1)
    loop.turn()
    assert told == [12_500_000] * 2
    values = [r.value for r in totals(small)]
    assert values == [b"tick", b" has 1, event", b"tick"]


def test_a_cut_is_made_when_its_time_has_come(small: FileLog, tmp_path: Path) -> None:
    now = 100.0
    config = LoopConfig(idle_s=0, cut_every_s=10)
    loop = make_loop(tmp_path, small, clock=lambda: now, config=config)
    for moment, cuts in ((109.9, 0), (110.0, 1), (119.9, 1), (120.0, 2)):
        feed(small, 1)
        now = moment
        loop.turn()
        assert len(CutDirectory(tmp_path / "cuts")._all()) == cuts


def test_no_cut_is_made_while_nothing_is_read(small: FileLog, tmp_path: Path) -> None:
    loop = make_loop(tmp_path, small, config=LoopConfig(idle_s=0, cut_every_s=0))
    for _ in range(5):
        loop.turn()
    loop.cut()
    assert not (tmp_path / "cuts").exists()


def test_running_ends_when_it_is_told_to_and_with_a_cut(small: FileLog, tmp_path: Path) -> None:
    feed(small, 20)
    stopping = threading.Event()
    read = 0

    def stop_after_three_turns(point: int) -> None:
        nonlocal read
        read += point == 4
        if read == 3:
            stopping.set()

    config = LoopConfig(limit=6, idle_s=0, cut_every_s=1e9)
    make_loop(tmp_path, small, config=config, reached=stop_after_three_turns).run(stopping)
    _, positions = CutDirectory(tmp_path / "cuts").newest()
    assert positions == small.positions("counter", [EVENTS]) == {EVENTS_0: 18}


def test_flush_is_called_before_every_cut(small: FileLog, tmp_path: Path) -> None:
    happened: list[str] = []

    class Noting(Counting):
        def snapshot(self) -> Artefact:
            happened.append("snapshot")
            return super().snapshot()

    def flush() -> None:
        happened.append(f"flush beside {len(CutDirectory(tmp_path / 'cuts')._all())} cuts")

    loop = Loop(small, "g", [EVENTS], Noting, tmp_path / "cuts", flush=flush)
    for _ in range(2):
        feed(small, 1)
        loop.turn()
        loop.cut()
    assert happened == ["flush beside 0 cuts", "snapshot", "flush beside 1 cuts", "snapshot"]


def test_no_cut_is_made_when_flush_fails(small: FileLog, tmp_path: Path) -> None:
    def flush() -> None:
        raise OSError("the store is away")

    feed(small, 1)
    loop = make_loop(tmp_path, small, flush=flush)
    loop.turn()
    with pytest.raises(OSError, match="the store is away"):
        loop.cut()
    assert not (tmp_path / "cuts").exists()


def test_two_cuts_are_kept_and_half_written_ones_are_tidied_away(
    small: FileLog, tmp_path: Path
) -> None:
    loop = make_loop(tmp_path, small)
    for _ in range(4):
        feed(small, 1)
        loop.turn()
        (tmp_path / "cuts" / ".cut-00000009.77").mkdir(parents=True)
        loop.cut()
    assert cut_names(tmp_path) == ["cut-00000003", "cut-00000004"]


# Telling only what changed


def test_only_the_first_cut_of_a_process_is_whole(small: FileLog, tmp_path: Path) -> None:
    for _ in range(2):
        loop = make_tallying(tmp_path, small, config=BY_HAND)
        for _ in range(3):
            feed(small, 2)
            loop.turn()
            loop.cut()
    bases = [read_manifest(tmp_path / "cuts" / name).get("base") for name in cut_names(tmp_path)]
    assert [base and base["number"] for base in bases] == [None, 1, 2, None, 4, 5]
    newest = read_artefact(tmp_path / "cuts" / "cut-00000006").shards
    assert newest["recent"]["id"].to_pylist() == [10, 11]
    assert newest["recent.gone"]["id"].to_pylist() == [2, 3]


@pytest.mark.parametrize("background", [False, True])
def test_a_step_restored_from_any_cut_is_as_it_was(
    log: FileLog, home: Path, background: bool
) -> None:
    config = replace(BY_HAND, background=background, deltas=4)
    loop = make_tallying(home, log, config=config)
    while loop.turn():
        loop.cut()
        again = restored(home)
        assert again is not None
        step, built = loop.step, Tallying(again)
        assert (built.counts, built.recent) == (step.counts, step.recent)
        assert built.counts.keys() == step.counts.keys()


def test_what_changed_is_settled_when_it_is_durable(small: FileLog, tmp_path: Path) -> None:
    loop = make_tallying(tmp_path, small, config=BY_HAND)
    feed(small, 2)
    loop.turn()
    assert (loop.step.settled, len(loop.step.changed)) == (0, 2)
    loop.cut()
    assert (loop.step.settled, len(loop.step.changed)) == (2, 0)


@pytest.mark.parametrize("background", [False, True])
def test_a_cut_that_fails_loses_no_changes(
    small: FileLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    loop = make_tallying(tmp_path, small, config=replace(BY_HAND, background=background))
    for fails in (True, False, True, True, False):
        feed(small, 3)
        loop.turn()
        with monkeypatch.context() as patch:
            if fails:
                patch.setattr(os, "fsync", fail_for_want_of_space)
                with pytest.raises(ArtefactError, match="no space is left on the disk"):
                    loop.cut()
            else:
                loop.cut()
    assert cut_names(tmp_path) == ["cut-00000001", "cut-00000002"]
    again = restored(tmp_path)
    assert again is not None
    assert Tallying(again).recent == loop.step.recent


def test_the_next_cut_is_whole_after_one_on_the_disk_was_damaged(
    small: FileLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = make_tallying(tmp_path, small, config=replace(BY_HAND, deltas=2))
    for number in range(5):
        feed(small, 1)
        loop.turn()
        loop.cut()
        if number == 0:
            damage(tmp_path / "cuts" / "cut-00000001")
    assert "a cut was damaged, the next one is made whole" in caplog.text
    assert read_manifest(tmp_path / "cuts" / "cut-00000004")["base"]["number"] == 3
    assert "base" not in read_manifest(tmp_path / "cuts" / "cut-00000005")
    again = restored(tmp_path)
    assert again is not None
    assert Tallying(again).recent == loop.step.recent


# In the background


EAGER = LoopConfig(limit=6, idle_s=0, cut_every_s=0, background=True)


def fail_for_want_of_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing becomes durable until it is set."""
    opened, fsync = threading.Event(), os.fsync

    def wait(descriptor: int) -> None:
        assert opened.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    yield opened
    opened.set()


def wait_for_the_cut(loop: Loop[Any]) -> None:
    assert loop._writing is not None
    wait([loop._writing[1]], 60)


def test_the_loop_goes_on_while_a_cut_is_written_of_what_was(
    small: FileLog, tmp_path: Path, gate: threading.Event
) -> None:
    loop = make_tallying(tmp_path, small, config=EAGER)
    feed(small, 5)
    loop.turn()
    then = Tallying(loop.step.snapshot())
    for _ in range(10):
        feed(small, 5)
        assert loop.turn() == 5
    assert max(then.recent) < min(i for i in loop.step.recent if i >= 0)
    assert small.positions("counter", [EVENTS]) == {EVENTS_0: 55}
    assert CutDirectory(tmp_path / "cuts").newest() == (None, {})
    gate.set()
    wait_for_the_cut(loop)
    state, positions = CutDirectory(tmp_path / "cuts").newest()
    assert state is not None
    assert positions == {EVENTS_0: 5}
    assert (Tallying(state).counts, Tallying(state).recent) == (then.counts, then.recent)


def test_a_cut_that_is_due_meanwhile_waits_its_turn(
    small: FileLog, tmp_path: Path, gate: threading.Event
) -> None:
    copies = []

    class Noting(Counting):
        def snapshot(self) -> Artefact:
            copies.append(self.counts[""])
            return super().snapshot()

    loop = Loop(small, "g", [EVENTS], Noting, tmp_path / "cuts", config=EAGER)
    for _ in range(4):
        feed(small, 1)
        loop.turn()
    assert copies == [1]
    gate.set()
    wait_for_the_cut(loop)
    loop.turn()
    loop.cut()
    assert copies == [1, 4]


def test_a_cut_by_hand_and_the_last_one_are_waited_for(small: FileLog, tmp_path: Path) -> None:
    stopping = threading.Event()
    loop = make_tallying(tmp_path, small, config=EAGER)
    for number in (1, 2):
        feed(small, 7)
        loop.turn()  # takes 6, and has them written
        loop.turn()
        if number == 1:
            loop.cut()
        else:
            stopping.set()
            loop.run(stopping)
        _, positions = CutDirectory(tmp_path / "cuts").newest()
        assert positions == {EVENTS_0: 7 * number}


def test_the_thread_beside_reaches_5_and_6_and_the_loop_the_others(
    small: FileLog, tmp_path: Path
) -> None:
    reached: list[tuple[int, bool]] = []
    here = threading.current_thread()
    loop = make_tallying(
        tmp_path, small, reached=lambda n: reached.append((n, threading.current_thread() is here))
    )
    feed(small, 1)
    loop.turn()
    loop.cut()
    assert reached == [(n, n < 5) for n in range(7)]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_full_disk_is_told_once_and_nothing_is_lost(
    make_disk: Callable[[str], Path], small: FileLog, tmp_path: Path, by_hand: bool
) -> None:
    disk = make_disk("256k")
    loop = Loop(
        small, "counter", [EVENTS], Tallying, disk / "cuts", config=EAGER, clock=Ticking()
    )  # fmt: skip
    feed(small, 9)
    loop.turn()
    loop.cut()
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
    feed(small, 3)
    loop.turn()
    wait_for_the_cut(loop)
    with pytest.raises(ArtefactError, match="no space is left on the disk; mend that"):
        loop.cut() if by_hand else loop.turn()
    assert CutDirectory(disk / "cuts").newest()[1] == {EVENTS_0: 6}
    assert loop.positions == {EVENTS_0: 12}
    (disk / "other").unlink()
    feed(small, 1)
    assert loop.turn() == 1
    loop.cut()
    state, positions = CutDirectory(disk / "cuts").newest()
    assert state is not None
    assert positions == {EVENTS_0: 13}
    assert Tallying(state).recent == loop.step.recent


# Executing


def test_the_executor_turns_outputs_into_appends_before_they_are_committed(
    small: FileLog, tmp_path: Path
) -> None:
    executed: list[Append] = []

    def execute(outputs: Sequence[Append]) -> list[Append]:
        assert small.positions("counter", [EVENTS]) == {EVENTS_0: 0}
        executed.extend(outputs)
        return [Append(TOTALS, b"<%b>" % o.value) for o in outputs]

    feed(small, 2)
    make_loop(tmp_path, small, execute=execute).turn()
    assert [o.value for o in executed] == [b" has 1, event", b" has 2, event"]
    assert [r.value for r in totals(small)] == [b"< has 1, event>", b"< has 2, event>"]


def test_an_executor_may_keep_something_for_a_later_turn_in_which_nothing_is_read(
    small: FileLog, tmp_path: Path
) -> None:
    kept: list[Append] = []

    def execute(outputs: Sequence[Append]) -> list[Append]:
        if outputs:
            kept.extend(outputs)
            return []
        done = [*kept]
        kept.clear()
        return done

    feed(small, 2)
    loop = make_loop(tmp_path, small, execute=execute)
    assert loop.turn() == 2
    assert totals(small) == []
    for _ in range(2):
        assert loop.turn() == 0
        assert [r.value for r in totals(small)] == [b" has 1, event", b" has 2, event"]
    assert small.positions("counter", [EVENTS]) == {EVENTS_0: 2}


def test_an_executor_that_raises_leaves_nothing_committed(small: FileLog, tmp_path: Path) -> None:
    def fail(outputs: Sequence[Append]) -> list[Append]:
        raise RuntimeError("the disk is away")

    feed(small, 2)
    with pytest.raises(RuntimeError, match="the disk is away"):
        make_loop(tmp_path, small, execute=fail).turn()
    assert small.positions("counter", [EVENTS]) == {EVENTS_0: 0}
    assert totals(small) == []
    run_to_the_end(make_loop(tmp_path, small))
    assert [r.value for r in totals(small)] == [b" has 1, event", b" has 2, event"]


def test_a_loop_whose_work_was_taken_over_stops_and_its_work_is_undone(
    small: FileLog, tmp_path: Path
) -> None:
    first = make_loop(tmp_path / "1", small)
    second = make_loop(tmp_path / "2", small)
    feed(small, 2)
    second.turn()
    with pytest.raises(Fenced):
        first.turn()
    assert [r.value for r in totals(small)] == [b" has 1, event", b" has 2, event"]


def test_a_loop_that_was_taken_over_cannot_append_what_time_made_it_say(
    small: FileLog, tmp_path: Path
) -> None:
    class Timed(Counting):
        def on_time(self, now_us: int) -> list[Append]:
            return [Append(TOTALS, b"tick")]

    second = make_loop(tmp_path / "2", small)

    def take_over(point: int) -> None:
        if point == 1:
            feed(small, 1)
            second.turn()

    first = Loop(
        small, "counter", [EVENTS], Timed, tmp_path / "1",
        config=LoopConfig(idle_s=0), reached=take_over,
    )  # fmt: skip
    with pytest.raises(Fenced):
        first.turn()
    assert [r.value for r in totals(small)] == [b" has 1, event"]


def test_outputs_of_replayed_records_are_redone_and_neither_executed_nor_appended(
    small: FileLog, tmp_path: Path
) -> None:
    feed(small, 3)
    make_loop(tmp_path, small).turn()
    redone: list[Append] = []
    executed: list[Append] = []

    def redo(outputs: Sequence[Append]) -> Sequence[Append]:
        redone.extend(outputs)
        return outputs

    def execute(outputs: Sequence[Append]) -> Sequence[Append]:
        executed.extend(outputs)
        return outputs

    loop = make_loop(tmp_path, small, redo=redo, execute=execute)
    assert [o.value for o in redone] == [b" has 1, event", b" has 2, event", b" has 3, event"]
    assert executed == []
    feed(small, 1)
    loop.turn()
    assert [o.value for o in executed] == [b" has 4, event"]
    assert len(redone) == 3
    assert len(totals(small)) == 4


# Killed at every number


def live(
    home: Path, point: int, times: int, sync: int = 0, make: Callable[..., Loop[Any]] = make_loop
) -> None:
    """Runs the loop in a process that dies when it gets to `point` for the `times`th time.

    With `sync` it dies before a file is made durable for the `sync`th time.
    """
    met = 0
    syncs = 0

    def die(number: int) -> None:
        nonlocal met
        met += number == point
        if met == times:
            os._exit(9)

    def die_while_writing(descriptor: Any) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == sync:
            os._exit(9)

    if sync:
        vars(os).update(fsync=die_while_writing)
    log = open_log(home)
    run_to_the_end(make(home, log, reached=die), patient=sync > 0)
    log.close()


def exit_of(processes: ForkServerContext, *arguments: Any) -> int | None:
    child = processes.Process(target=live, args=arguments)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.mark.parametrize("point", range(7))
def test_dying_at_any_number_changes_nothing(
    processes: ForkServerContext, home: Path, undisturbed: list[Any], point: int
) -> None:
    rng = random.Random(point)
    often = {0: 1, 5: 3, 6: 3}.get(point, 15)
    deaths = [(4, rng.randint(2, 15))] + [(point, rng.randint(1, often)) for _ in range(3)]
    for number, times in deaths:
        assert exit_of(processes, home, number, times) == 9
    assert exit_of(processes, home, -1, 1) == 0
    log = open_log(home)
    assert contents(log) == undisturbed
    assert log.positions("counter", [EVENTS]) == log.ends([EVENTS])
    log.close()


@pytest.mark.parametrize("sync", [1, 2, 3, 4, 5, 9])
def test_dying_while_a_cut_is_written_changes_nothing(
    processes: ForkServerContext, home: Path, undisturbed: list[Any], sync: int
) -> None:
    assert exit_of(processes, home, -1, 1, sync) == 9
    log = open_log(home)
    assert 0 < len(contents(log)) < RECORDS
    log.close()
    assert exit_of(processes, home, -1, 1) == 0
    log = open_log(home)
    assert contents(log) == undisturbed
    log.close()
    assert all(name.startswith("cut-") for name in cut_names(home))


@pytest.fixture
def tallied(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """The state of a tallying loop that nothing happened to."""
    other = tmp_path_factory.mktemp("tallied")
    shutil.copy(home / "log.db", other / "log.db")
    log = open_log(other)
    run_to_the_end(make_tallying(other, log))
    log.close()
    state, _ = CutDirectory(other / "cuts").newest()
    assert state is not None
    return state


def restored(home: Path) -> Artefact | None:
    return CutDirectory(home / "cuts").newest()[0]


@pytest.mark.parametrize("point", range(7))
def test_dying_at_any_number_while_cuts_are_made_beside_changes_nothing(
    processes: ForkServerContext,
    home: Path,
    undisturbed: list[Any],
    tallied: Artefact,
    point: int,
) -> None:
    rng = random.Random(point)
    often = {0: 1, 5: 1, 6: 1}.get(point, 15)
    assert exit_of(processes, home, point, rng.randint(1, often), 0, make_tallying) == 9
    # How many more cuts there are is a matter of time, and so is whether it dies again.
    assert exit_of(processes, home, point, rng.randint(1, 3), 0, make_tallying) in (0, 9)
    assert exit_of(processes, home, -1, 1, 0, make_tallying) == 0
    log = open_log(home)
    assert contents(log) == undisturbed
    log.close()
    assert restored(home) == tallied


# A whole cut is synced five times and another one six times; after three of these all are merged.
@pytest.mark.parametrize("sync", [5, 8, 24, 28])
def test_dying_while_a_cut_is_written_beside_changes_nothing(
    processes: ForkServerContext, home: Path, undisturbed: list[Any], tallied: Artefact, sync: int
) -> None:
    assert exit_of(processes, home, -1, 1, sync, make_tallying) == 9
    assert exit_of(processes, home, -1, 1, 0, make_tallying) == 0
    log = open_log(home)
    assert contents(log) == undisturbed
    log.close()
    assert restored(home) == tallied
    assert all(name.startswith("cut-") for name in cut_names(home))


def test_kill_9_at_random_moments_changes_nothing(
    processes: ForkServerContext, home: Path, undisturbed: list[Any]
) -> None:
    rng = random.Random(0)
    place = TopicPartition(TOTALS, 0)
    watching = open_log(home)
    end = watching.ends([EVENTS])[TopicPartition(EVENTS, 0)]
    for target in sorted(rng.sample(range(5, end - 20), 5)):
        child = processes.Process(target=live, args=(home, -1, 1))
        child.start()
        assert watching.read({place: target}, 1, timeout_s=60)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join(60)
    watching.close()
    assert exit_of(processes, home, -1, 1) == 0
    log = open_log(home)
    assert contents(log) == undisturbed
    log.close()


# Starting again


def halfway(home: Path, log: FileLog) -> None:
    """Runs until there are two cuts and something committed after the newer one."""
    loop = make_loop(home, log, config=LoopConfig(limit=6, idle_s=0, cut_every_s=1e9))
    for turns in (7, 5, 3):
        if (home / "cuts").exists() or turns != 7:
            loop.cut()
        for _ in range(turns):
            loop.turn()
    assert cut_names(home) == ["cut-00000001", "cut-00000002"]


def damage(cut: Path) -> None:
    shard = cut / "counts.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)


def test_what_was_committed_after_the_cut_is_replayed_silently(
    small: FileLog, tmp_path: Path
) -> None:
    feed(small, 12)
    first = make_loop(tmp_path, small, config=LoopConfig(limit=4, idle_s=0))
    first.turn()
    first.cut()
    first.turn()
    second = make_loop(tmp_path, small, config=LoopConfig(limit=3, idle_s=0))
    assert second.step.taken == [4, 5, 6, 7]
    assert len(totals(small)) == 8
    second.turn()
    assert second.step.taken == [4, 5, 6, 7, 8, 9, 10]


def test_a_damaged_newest_cut_is_passed_over(
    log: FileLog, home: Path, undisturbed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    halfway(home, log)
    damage(home / "cuts" / "cut-00000002")
    loop = make_loop(home, log)
    assert "passing over a damaged cut: " in caplog.text
    assert "cut-00000002/counts.arrow" in caplog.text
    run_to_the_end(loop)
    assert contents(log) == undisturbed
    assert cut_names(home)[-1] > "cut-00000002"
    assert read_artefact(home / "cuts" / cut_names(home)[-1]).meta["state"] == {"keys": 5}


def test_when_every_cut_is_damaged_nothing_is_trusted_and_the_way_out_is_told(
    log: FileLog, home: Path, undisturbed: list[Any]
) -> None:
    halfway(home, log)
    before = contents(log)
    for name in cut_names(home):
        damage(home / "cuts" / name)
    with pytest.raises(
        ArtefactCorrupt,
        match=r"no cut in .*/cuts can be read \(.*counts\.arrow.*\): delete that directory to"
        r" rebuild the state from the log, or start over with `headrace run --fresh`",
    ):
        make_loop(home, log)
    assert contents(log) == before

    shutil.rmtree(home / "cuts")
    run_to_the_end(make_loop(home, log))
    assert contents(log) == undisturbed


def test_a_cut_that_is_ahead_of_the_log_is_refused(tmp_path: Path, small: FileLog) -> None:
    feed(small, 5)
    loop = make_loop(tmp_path, small)
    loop.turn()
    loop.cut()
    replaced = FileLog(tmp_path / "new.db", topics=TOPICS)
    feed(replaced, 9)
    with pytest.raises(
        ArtefactError, match=r"is ahead of the log \(events/0: 5 > 0\): the log was replaced"
    ):
        make_loop(tmp_path, replaced)
    replaced.close()


def test_records_that_can_no_longer_be_replayed_are_missed_aloud(
    tmp_path: Path, small: FileLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.loop.REPLAY_WAIT_S", 0)
    feed(small, 5)
    make_loop(tmp_path, small).turn()
    small._connection.execute('DELETE FROM "events/0"')
    with pytest.raises(ArtefactError, match=r"cannot replay .*no longer holds those records"):
        make_loop(tmp_path, small)


@pytest.fixture
def trimmed() -> MemoryLog:
    """A log of which retention has already taken the first 3 of 8 records."""
    log = MemoryLog(topics=TOPICS)
    log.append([Append(EVENTS, b"event") for _ in range(8)])
    log.trim(EVENTS_0, 3)
    return log


def test_a_new_group_begins_where_the_log_does(tmp_path: Path, trimmed: MemoryLog) -> None:
    loop = make_loop(tmp_path, trimmed)
    assert loop.turn() == 5
    again = make_loop(tmp_path, trimmed)  # the first died before it could make a cut
    assert again.step.counts == loop.step.counts == {"": 5}


def test_records_that_retention_took_before_they_were_in_a_cut_are_missed_aloud(
    tmp_path: Path, trimmed: MemoryLog
) -> None:
    make_loop(tmp_path, trimmed).turn()
    trimmed.trim(EVENTS_0, 5)
    with pytest.raises(ArtefactError, match=r"cannot replay .*no longer holds those records"):
        make_loop(tmp_path, trimmed)
    shutil.rmtree(tmp_path / "cuts")
    with pytest.raises(ArtefactError, match=r"cannot replay .*no longer holds those records"):
        make_loop(tmp_path, trimmed)


def test_no_cut_is_made_by_one_whose_work_another_has_taken_over(
    tmp_path: Path, small: FileLog
) -> None:
    feed(small, 5)
    late = make_loop(tmp_path, small)
    late.turn()
    feed(small, 5)
    make_loop(tmp_path, small).turn()
    with pytest.raises(Fenced, match="group 'counter' has moved on"):
        late.cut()
    assert not (tmp_path / "cuts").exists()


def test_a_loop_that_replayed_leaves_a_cut_even_if_nothing_new_comes(
    small: FileLog, tmp_path: Path
) -> None:
    feed(small, 5)
    make_loop(tmp_path, small).turn()  # and dies before its cut
    make_loop(tmp_path, small).cut()
    third = make_loop(tmp_path, small)
    assert third.step.taken == []
    assert third.step.counts == {"": 5}


def test_a_process_that_dies_between_4_and_5_for_ever_still_gets_on(
    processes: ForkServerContext, home: Path, undisturbed: list[Any]
) -> None:
    """One turn a life, and never a cut: everything rests on the replay."""
    lives = 0
    while exit_of(processes, home, 4, 1) == 9 and lives < 12:
        lives += 1
    assert lives == 12
    assert not (home / "cuts").exists()
    assert exit_of(processes, home, -1, 1) == 0
    log = open_log(home)
    assert contents(log) == undisturbed
    log.close()


def test_a_topic_that_was_added_is_read_from_its_beginning(small: FileLog, tmp_path: Path) -> None:
    feed(small, 2)
    loop = make_loop(tmp_path, small)
    loop.turn()
    loop.cut()
    wider = Loop(
        small, "counter", [EVENTS, TOTALS], Counting, tmp_path / "cuts",
        execute=lambda _: [], config=LoopConfig(idle_s=0),
    )  # fmt: skip
    assert wider.turn() == 2  # the two totals
    assert wider.turn() == 0
