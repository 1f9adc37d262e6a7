"""Parts of an answer: what is late or broken is left out, said, and then not asked for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serving.parts import Outcome, Parts, PartsConfig

HOUR_S = 3600.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[tuple[str, Outcome]]:
    return []


@pytest.fixture
def parts(clock: Clock, told: list[tuple[str, Outcome]]) -> Parts:
    config = PartsConfig(failures=3, rest_s=2.0, longest_rest_s=5.0, at_once=2)
    return Parts(config, lambda part, outcome, _seconds: told.append((part, outcome)), clock)


def broken() -> int:
    raise ValueError("nothing but trouble")


def test_what_is_done_in_time_is_in_the_answer(
    parts: Parts, told: list[tuple[str, Outcome]]
) -> None:
    work = parts.begin(HOUR_S)
    assert work.do("sum", lambda a, b: a + b, 1, 2) == 3
    assert work.apart("product", lambda a, b: a * b, 3, 4, within_s=HOUR_S) == 12
    assert work.degraded == []
    assert set(work.took_ms) == {"sum", "product"}
    assert told == [("sum", Outcome.DONE), ("product", Outcome.DONE)]


def test_a_broken_part_is_left_out_and_said(parts: Parts) -> None:
    work = parts.begin(HOUR_S)
    assert work.do("here", broken) is None
    assert work.apart("there", broken, within_s=HOUR_S) is None
    assert work.degraded == ["here: failed", "there: failed"]


def test_a_part_that_hangs_is_left_behind(parts: Parts) -> None:
    release = threading.Event()
    try:
        work = parts.begin(HOUR_S)
        assert work.apart("store", release.wait, within_s=0.01) is None
        assert work.degraded == ["store: late"]
        assert work.do("sum", lambda: 3) == 3  # the answer goes on
    finally:
        release.set()


def test_no_more_of_one_part_hang_than_may(parts: Parts) -> None:
    release = threading.Event()
    try:
        work = parts.begin(HOUR_S)
        for _ in range(2):
            assert work.apart("store", release.wait, within_s=0.01) is None
        asked = threading.Event()
        assert work.apart("store", asked.set, within_s=HOUR_S) is None
        assert not asked.is_set()
        assert work.degraded[-1] == "store: busy"
    finally:
        release.set()


def test_an_answer_without_time_asks_nobody(parts: Parts, clock: Clock) -> None:
    work = parts.begin(0.5)
    clock.now_s += 1.0
    assert work.do("sum", lambda: 3) is None
    assert work.apart("store", lambda: 3, within_s=HOUR_S) is None
    assert work.degraded == ["sum: skipped", "store: skipped"]


def test_who_fails_in_a_row_rests_longer_each_time(parts: Parts, clock: Clock) -> None:
    def outcome() -> str:
        work = parts.begin(HOUR_S)
        work.do("store", broken)
        return work.degraded[0].removeprefix("store: ")

    assert [outcome() for _ in range(4)] == ["failed", "failed", "failed", "resting"]
    for rest_s in (2.0, 4.0, 5.0, 5.0):  # twice as long, to the longest
        clock.now_s += rest_s - 0.1
        assert outcome() == "resting"
        clock.now_s += 0.2
        assert outcome() == "failed"  # asked once more
        assert outcome() == "resting"


def test_who_works_again_is_trusted_again(parts: Parts, clock: Clock) -> None:
    def failed() -> list[str]:
        work = parts.begin(HOUR_S)
        work.do("store", broken)
        return work.degraded

    for _ in range(3):
        failed()
    clock.now_s += 2.1
    assert parts.begin(HOUR_S).do("store", lambda: 3) == 3
    assert [failed() for _ in range(3)] == [["store: failed"]] * 3
    assert failed() == ["store: resting"]
    assert parts.begin(HOUR_S).do("another", lambda: 3) == 3  # each by itself


def test_what_is_held_is_held_until_the_last_reader_has_left(parts: Parts) -> None:
    held = False
    let_go, release = threading.Event(), threading.Event()

    @contextmanager
    def resource() -> Iterator[str]:
        nonlocal held
        held = True
        yield "version 3"
        held = False
        let_go.set()

    work = parts.begin(HOUR_S)
    with work.holding(resource()) as version:
        assert version == "version 3"
        work.apart("ranker", release.wait, within_s=0.01)
    assert held  # the ranker that was left behind still reads it
    release.set()
    assert let_go.wait(30)
    assert not held

    with work.holding(resource()):
        assert work.apart("ranker", lambda: 3, within_s=HOUR_S) == 3
        assert held
    assert not held
