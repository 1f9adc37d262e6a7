"""Labels that come late, against a plain dictionary that knows the same rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers.delayed import DelayedLabels, LabelWindow, label_keys
from trainers.metrics import AUC, Outcomes, outcomes

few = settings(max_examples=150, deadline=None, derandomize=True)
S = 1_000_000  # microseconds


def ids(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def pairs(rows: Outcomes) -> list[tuple[float, float]]:
    return list(zip(rows["prediction"].tolist(), rows["label"].tolist(), strict=True))


def waiting_for(window: LabelWindow) -> DelayedLabels:
    return DelayedLabels({"click": window})


def expect(delayed: DelayedLabels, keys: list[int], p: list[float], at_s: list[int]) -> Outcomes:
    return delayed.expect("click", ids(*keys), outcomes(p), ids(*at_s) * S)


def label(delayed: DelayedLabels, keys: list[int], y: list[float], at_s: list[int]) -> Outcomes:
    return delayed.label("click", ids(*keys), np.array(y), ids(*at_s) * S)


# Questions and answers


def test_a_label_meets_what_was_predicted_for_its_key() -> None:
    delayed = waiting_for(LabelWindow(60))
    rows = outcomes([0.2, 0.8], weights=[1, 3], groups=[5, 6], bids=[1.5, 2.5], scenarios=[1, 2])
    assert len(delayed.expect("click", ids(10, 11), rows, ids(0, 1))) == 0
    (found,) = label(delayed, [11], [1.0], [2])
    assert found.tolist() == (0.8, 1.0, 3.0, 6, 2.5, 2)
    assert delayed.get()["click"]["waiting"] == 1
    assert delayed.get()["click"]["labelled"] == 1


def test_what_expires_counts_as_negative() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1, 2], [0.2, 0.3], [0, 10])
    assert pairs(delayed.advance("click", 60 * S - 1)) == []
    assert pairs(delayed.advance("click", 60 * S)) == [(0.2, 0.0)]
    assert pairs(expect(delayed, [3], [0.4], [70])) == [(0.3, 0.0)]
    assert delayed.get()["click"]["expired"] == 2


def test_what_expires_is_dropped_if_so_declared() -> None:
    delayed = waiting_for(LabelWindow(60, expired="drop"))
    expect(delayed, [1, 2], [0.2, 0.3], [0, 10])
    assert pairs(label(delayed, [2], [1.0], [65])) == [(0.3, 1.0)]
    assert delayed.get()["click"]["expired"] == 1


def test_a_label_that_comes_when_the_window_is_over_finds_nothing() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1], [0.2], [0])
    assert pairs(label(delayed, [1], [1.0], [60])) == [(0.2, 0.0)]
    assert delayed.get()["click"]["unmatched"] == 1


def test_a_second_label_and_one_without_a_question_are_counted() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1], [0.2], [0])
    assert pairs(label(delayed, [1, 1, 7], [1.0, 1.0, 0.0], [1, 1, 1])) == [(0.2, 1.0)]
    assert delayed.get()["click"]["unmatched"] == 2


def test_a_label_that_is_not_known_leaves_the_prediction_waiting() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1], [0.2], [0])
    assert pairs(label(delayed, [1], [np.nan], [1])) == []
    assert pairs(label(delayed, [1], [0.0], [2])) == [(0.2, 0.0)]


def test_what_was_shown_twice_counts_once_with_its_first_prediction() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1, 1], [0.2, 0.9], [0, 1])
    expect(delayed, [1], [0.7], [2])
    assert pairs(label(delayed, [1], [1.0], [3])) == [(0.2, 1.0)]
    assert pairs(delayed.advance("click", 1000 * S)) == []
    assert delayed.get()["click"]["repeated"] == 2


def test_a_key_may_come_again_after_it_was_answered() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1], [0.2], [0])
    label(delayed, [1], [0.0], [1])
    expect(delayed, [1], [0.9], [2])
    assert pairs(label(delayed, [1], [1.0], [3])) == [(0.9, 1.0)]


def test_the_oldest_makes_room_and_is_scored_as_nothing() -> None:
    delayed = waiting_for(LabelWindow(60, most=2))
    assert pairs(expect(delayed, [1, 2, 3], [0.1, 0.2, 0.3], [0, 1, 2])) == []
    assert delayed.get()["click"]["displaced"] == 1
    assert pairs(label(delayed, [1, 2, 3], [1.0] * 3, [3] * 3)) == [(0.2, 1.0), (0.3, 1.0)]


def test_time_does_not_go_back() -> None:
    delayed = waiting_for(LabelWindow(60))
    expect(delayed, [1], [0.1], [100])
    expect(delayed, [2], [0.2], [0])  # came late: its window begins when it came
    assert pairs(delayed.advance("click", 0)) == []
    assert pairs(delayed.advance("click", 160 * S)) == [(0.1, 0.0), (0.2, 0.0)]


def test_each_task_waits_in_its_own_queue() -> None:
    delayed = DelayedLabels({"click": LabelWindow(10), "buy": LabelWindow(1000)})
    for task in ("click", "buy"):
        delayed.expect(task, ids(1), outcomes([0.4]), ids(0))
    assert pairs(delayed.advance("click", 500 * S)) == [(0.4, 0.0)]
    assert pairs(delayed.label("buy", ids(1), np.array([1.0]), ids(500 * S))) == [(0.4, 1.0)]
    with pytest.raises(ValueError, match=r"'cart'.*click.*buy"):
        delayed.advance("cart", 0)


def test_labels_come_late_and_the_metric_is_that_of_the_first_predictions() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    y = (rng.random(2000) < p).astype(float)
    delayed, late, at_once = waiting_for(LabelWindow(100)), AUC(), AUC()
    at_once.update(outcomes(p, y))
    for i in range(0, 2000, 50):
        late.update(expect(delayed, list(range(i, i + 50)), p[i : i + 50].tolist(), [i] * 50))
        clicked = i + np.flatnonzero(y[i : i + 50])
        late.update(label(delayed, clicked.tolist(), [1.0] * len(clicked), [i + 20] * len(clicked)))
    late.update(delayed.advance("click", 10**12))
    assert late.get()["auc"] == at_once.get()["auc"]
    assert delayed.get()["click"]["waiting"] == 0


# Against a dictionary


@dataclass
class Plain:
    """The rules, one event at a time."""

    window: LabelWindow
    now: int = -(10**18)
    waiting: dict[int, tuple[float, int]] = field(default_factory=dict)

    def advance(self, now: int) -> list[tuple[float, float]]:
        self.now = max(self.now, now)
        due = [key for key, (_, due) in self.waiting.items() if due <= self.now]
        expired = [(self.waiting.pop(key)[0], 0.0) for key in due]
        return expired if self.window.expired == "negative" else []

    def expect(self, key: int, p: float, at: int) -> list[tuple[float, float]]:
        expired = self.advance(at)
        if key not in self.waiting:
            if len(self.waiting) == self.window.most:
                self.waiting.pop(next(iter(self.waiting)))
            self.waiting[key] = (p, self.now + round(self.window.window_s * S))
        return expired

    def label(self, key: int, y: float, at: int) -> list[tuple[float, float]]:
        expired = self.advance(at)
        if not np.isnan(y) and key in self.waiting:
            expired.append((self.waiting.pop(key)[0], y))
        return expired


TIMES = st.integers(0, 30)
EXPECT = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), TIMES), max_size=8)
LABEL = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 1.0, np.nan]), TIMES))
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("expect"), EXPECT),
        st.tuples(st.just("label"), LABEL),
        st.tuples(st.just("advance"), TIMES),
    ),
    max_size=15,
)
WINDOWS = st.builds(
    LabelWindow, st.integers(1, 12), st.sampled_from(["negative", "drop"]), st.integers(1, 6)
)


def do(delayed: DelayedLabels, call: str, events: Any) -> list[tuple[float, float]]:
    if call == "advance":
        return pairs(delayed.advance("click", events * S))
    keys, values, times = ([e[n] for e in events] for n in range(3))
    verb = expect if call == "expect" else label
    return pairs(verb(delayed, keys, values, times))


@given(window=WINDOWS, calls=CALLS)
@few
def test_agrees_with_a_dictionary(window: LabelWindow, calls: list[tuple[str, Any]]) -> None:
    delayed, plain = waiting_for(window), Plain(window)
    for call, events in calls:
        if call == "advance":
            expected = plain.advance(events * S)
        else:
            verb = plain.expect if call == "expect" else plain.label
            expected = [row for key, x, at in events for row in verb(key, x, at * S)]
        assert do(delayed, call, events) == expected
        assert delayed.get()["click"]["waiting"] == len(plain.waiting)


def same_state(one: DelayedLabels, other: DelayedLabels) -> bool:
    mine, theirs = one.state(), other.state()
    return mine.keys() == theirs.keys() and all(
        np.array_equal(mine[name], theirs[name], equal_nan=mine[name].dtype.kind == "f")
        for name in mine
    )


@given(window=WINDOWS, calls=CALLS)
@few
def test_the_bits_do_not_depend_on_how_the_stream_was_cut_or_saved(
    window: LabelWindow, calls: list[tuple[str, Any]]
) -> None:
    whole, pieces = waiting_for(window), waiting_for(window)
    for call, events in calls:
        expected = do(whole, call, events)
        single = [events] if call == "advance" else [[event] for event in events]
        assert [row for one in single for row in do(pieces, call, one)] == expected
        assert same_state(whole, pieces)
        saved, pieces = pieces, waiting_for(window)
        pieces.load(saved.state())
        assert same_state(whole, pieces)


def test_many_come_and_go_in_bounded_memory() -> None:
    delayed = waiting_for(LabelWindow(60, most=3000))
    for i in range(50):
        keys = np.arange(1000) + 1000 * i
        delayed.expect("click", keys, outcomes(np.full(1000, 0.5)), np.full(1000, i * S))
        found = delayed.label("click", keys[::2], np.ones(500), np.full(500, i * S))
        assert len(found) == 500
    counts = delayed.get()["click"]
    assert counts["waiting"] <= 3000
    assert counts["labelled"] + counts["displaced"] + counts["waiting"] == 50_000
    assert sum(array.nbytes for array in delayed.state().values()) < 3000 * 100


def test_a_state_that_lacks_a_task_leaves_it_empty() -> None:
    saved = waiting_for(LabelWindow(10))
    expect(saved, [1], [0.5], [0])
    both = DelayedLabels({"click": LabelWindow(10), "buy": LabelWindow(10)})
    both.load(saved.state())
    assert {task: counts["waiting"] for task, counts in both.get().items()} == {
        "click": 1,
        "buy": 0,
    }


@pytest.mark.parametrize(("window_s", "most"), [(0, 1), (-1, 1), (np.nan, 1), (1, 0)])
def test_windows_that_cannot_be_are_refused(window_s: float, most: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        LabelWindow(window_s, most=most)


def test_arguments_that_do_not_fit_are_refused() -> None:
    delayed = waiting_for(LabelWindow(10))
    with pytest.raises(ValueError, match="one of each"):
        expect(delayed, [1, 2], [0.5], [0, 0])
    with pytest.raises(ValueError, match="one of each"):
        label(delayed, [1], [0.0, 1.0], [0])
    with pytest.raises(ValueError, match="threshold"):
        label(delayed, [1], [3.0], [0])
    assert delayed.get()["click"]["waiting"] == 0


def test_keys_of_pairs_are_distinct_and_stable() -> None:
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(300), np.arange(300)))
    keys = label_keys(first, second)
    assert len(np.unique(keys)) == 90_000
    assert keys.min() >= 0
    assert label_keys(ids(3), ids(4)).tolist() != label_keys(ids(4), ids(3)).tolist()
