"""The intake: what was taken once is not taken again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from streaming.events import EventRules, encode_event, encode_events, event_batch, parse_event
from streaming.intake import Intake
from streaming.log import EVENTS, Append, Record

AsRecords = Callable[..., list[Record]]
RULES = EventRules()
NOW_US = 1_700_000_000_000_000


def user_event(event_id: str) -> bytes:
    return json.dumps({"kind": "user", "user_id": "u", "event_id": event_id}).encode()


def records(event_ids: Sequence[str]) -> list[Record]:
    return [Record(EVENTS, 0, n, None, user_event(e), NOW_US + n) for n, e in enumerate(event_ids)]


def taken(intake: Intake, event_ids: Sequence[str]) -> list[str]:
    ids: list[str] = intake.take(records(event_ids)).events["event_id"].to_pylist()
    return ids


def test_a_repeat_is_dropped_within_a_batch_and_in_later_ones(rules: EventRules) -> None:
    intake = Intake(rules)
    assert taken(intake, "abacb") == ["a", "b", "c"]
    assert taken(intake, "cada") == ["d"]
    assert taken(intake, "dddd") == []
    assert intake.repeats == 2 + 3 + 4


def test_a_repeat_is_recognised_in_the_other_form(rules: EventRules) -> None:
    intake = Intake(rules)
    events = [parse_event(user_event(name), rules, NOW_US) for name in "ab"]
    both = [encode_events(event_batch(events)), encode_event(events[0]), encode_event(events[1])]
    as_records = [Record(EVENTS, 0, n, None, a.value, NOW_US) for n, a in enumerate(both)]
    assert intake.take(as_records).events["event_id"].to_pylist() == ["a", "b"]


def test_what_is_kept_keeps_its_logged_time(rules: EventRules) -> None:
    decoded = Intake(rules).take(records("abacb"))
    assert (decoded.logged_us - NOW_US).tolist() == [0, 1, 3]


def test_a_refused_event_may_come_again_when_it_is_mended(rules: EventRules) -> None:
    intake = Intake(rules)
    bad = Append(EVENTS, b'{"kind":"dance","event_id":"a"}')
    decoded = intake.take([Record(EVENTS, 0, 0, None, bad.value, NOW_US)])
    assert len(decoded.rejected) == 1
    assert taken(intake, "a") == ["a"]


def test_no_more_ids_are_remembered_than_asked_for(rules: EventRules) -> None:
    intake = Intake(rules, remembered=3)
    for start in range(0, 50, 5):
        taken(intake, [str(n) for n in range(start, start + 5)])
        assert intake.snapshot().num_rows == 3
    assert taken(intake, ["47", "48", "49"]) == []
    assert taken(intake, ["46"]) == ["46"]


@given(
    st.lists(st.sampled_from("abcdef"), max_size=30),
    st.integers(1, 4),
    st.lists(st.integers(1, 6), min_size=1),
)
def test_what_is_a_repeat_does_not_depend_on_how_records_were_cut_into_batches(
    event_ids: list[str], remembered: int, sizes: list[int]
) -> None:
    together = Intake(RULES, remembered)
    apart = Intake(RULES, remembered)
    expected = taken(together, event_ids)
    found: list[str] = []
    start = 0
    for n in range(len(event_ids)):
        size = sizes[n % len(sizes)]
        found += taken(apart, event_ids[start : start + size])
        start += size
    assert found == expected
    assert apart.snapshot().equals(together.snapshot())


@given(st.lists(st.sampled_from("abcdefgh"), max_size=20), st.integers(0, 20))
def test_a_restored_intake_goes_on_as_if_nothing_had_happened(
    event_ids: list[str], split: int
) -> None:
    unbroken, first, second = (Intake(RULES, remembered=4) for _ in range(3))
    expected = [taken(unbroken, event_ids[:split]), taken(unbroken, event_ids[split:])]
    found = [taken(first, event_ids[:split])]
    second.restore(first.snapshot())
    found.append(taken(second, event_ids[split:]))
    assert found == expected
    assert second.snapshot().equals(unbroken.snapshot())


def test_a_snapshot_larger_than_the_memory_gives_it_the_newest(rules: EventRules) -> None:
    large, small = Intake(rules, remembered=5), Intake(rules, remembered=2)
    taken(large, "abcde")
    small.restore(large.snapshot())
    assert small.snapshot()["event"].to_pylist() == large.snapshot()["event"].to_pylist()[-2:]
    assert taken(small, "ed") == []
    assert taken(small, "c") == ["c"]


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 30))
def test_what_is_remembered_is_the_last_so_many_new_ids(
    numbers: list[int], remembered: int
) -> None:
    event_ids = [str(number) for number in numbers]
    expected, seen = [], list[str]()
    for event_id in event_ids:
        if event_id not in seen[-remembered:]:
            seen.append(event_id)
            expected.append(event_id)
    assert taken(Intake(RULES, remembered), event_ids) == expected
