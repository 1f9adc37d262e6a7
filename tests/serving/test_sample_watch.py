"""The sample watch looks as often as the least patient of those who wait, and sees everything."""

from __future__ import annotations

import threading

import pyarrow as pa

from serving.sample_watch import Joined, SampleWatch
from streaming.file_log import FileLog
from streaming.samples import SAMPLE_SCHEMA, encode_samples


class Waiting:
    """Says how patient it is, one time after the other, and keeps the items that it saw."""

    def __init__(self, *patience_s: float | None) -> None:
        self.waits(*patience_s)
        self.seen: list[int] = []

    def waits(self, *patience_s: float | None) -> None:
        self._patience_s = list(patience_s)

    def patience_s(self) -> float | None:
        return self._patience_s.pop(0) if len(self._patience_s) > 1 else self._patience_s[0]

    def take(self, joined: Joined) -> None:
        self.seen += joined.outline["item_id"].to_pylist()


class Rests(threading.Event):
    """Does not wait; says how long it was to, and stops after so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times
        self.rests_s: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.rests_s.append(timeout)
        if len(self.rests_s) >= self._times:
            self.set()
        return self.is_set()


def joined(log: FileLog, *items: int) -> None:
    rows = [{"item_id": item, "at": 0, "kind": "like", "logged_us": 0} for item in items]
    log.append([encode_samples(pa.RecordBatch.from_pylist([row], SAMPLE_SCHEMA)) for row in rows])


def test_it_rests_as_long_as_the_least_patient_of_those_who_wait(log: FileLog) -> None:
    hasty, patient, nobody = Waiting(0.1, None), Waiting(0.25), Waiting(None)
    watch = SampleWatch(log, [patient, hasty, nobody])
    joined(log, 1, 2)
    rests = Rests(times=3)
    watch.run(rests)
    assert rests.rests_s == [0.1, 0.25, 0.25]
    assert patient.seen == hasty.seen == [1, 2]  # who looks sees all that there is


def test_it_does_not_rest_before_it_has_seen_everything(log: FileLog) -> None:
    watcher = Waiting(0.25)
    watch = SampleWatch(log, [watcher])
    joined(log, *range(1_000))
    watch.run(Rests(times=1))
    assert watcher.seen == list(range(1_000))


def test_what_comes_while_nobody_waits_is_nobodys(log: FileLog) -> None:
    watcher = Waiting(None)
    watch = SampleWatch(log, [watcher])
    joined(log, 1)
    watch.run(Rests(times=2))
    watcher.waits(0.25)
    joined(log, 2)
    watch.run(Rests(times=1))
    assert watcher.seen == [2]


def test_who_cannot_wait_is_told_at_once(log: FileLog) -> None:
    class Hasty(Waiting):
        def take(self, joined: Joined) -> None:
            super().take(joined)
            if self.seen == [1, 2]:
                self.waits(0.25)

    hasty, rests = Hasty(0.0), Rests(times=1)
    watch = SampleWatch(log, [hasty])
    joined(log, 1)
    threading.Timer(0.1, joined, (log, 2)).start()  # comes while it reads
    watch.run(rests)
    assert (hasty.seen, rests.rests_s) == ([1, 2], [0.25])
