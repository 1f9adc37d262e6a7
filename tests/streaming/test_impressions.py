"""Open impressions: what leaves, when, with which labels; against a plain account in lists."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.artefact import Artefact
from streaming.errors import ConfigError
from streaming.event_columns import ACTION, WORD, Histories
from streaming.impressions import Impressions, ImpressionsConfig, Label
from streaming.join_kernels import ACTION as ACTS
from streaming.join_kernels import EVENT, IMPRESSION, NOTHING
from streaming.rings import Lists

LENGTH, WORDS = 3, 2  # of the histories in these tests
SECOND = 1_000_000
LABELS = {
    "click": Label(10.0),
    "watch": Label(20.0, after="click", graded=True),
    "cart": Label(20.0, after="click"),
    "buy": Label(40.0, after="cart"),
    "hide": Label(20.0),  # earns no reward: of use with its impression only
}
KINDS = ["impression", *LABELS, "rate"]  # `rate` is an action and no label
REWARDS = {"click": 0.25, "watch": 0.5, "cart": 0.75, "buy": 1.0, "rate": 0.5}
CONFIG = ImpressionsConfig(LABELS, wait_s=5.0, remember_s=30.0)


class Told(NamedTuple):
    """An event as a person would write it; times in seconds, -1 where there is no request."""

    kind: str  # `nothing` for one that is neither shown nor done
    at_s: float
    item: int = 1
    request: int = 1
    user: int = 1
    value: float = 1.0
    history: tuple[int, ...] = ()


class Left(NamedTuple):
    """A row that left, as a person would write it; the labels are those that it has."""

    event: int
    kind: str
    joined: bool
    item: int
    request: int
    user: int
    at_s: float
    reward: float | None
    labels: Mapping[str, float]
    history: tuple[int, ...]
    passed_over: tuple[tuple[int, float], ...] = ()  # items, and when they were shown


# The machine, told and heard in these words


def take(machine: Impressions, config: ImpressionsConfig, told: Sequence[Told],
         first: int = 0) -> list[Left]:  # fmt: skip
    """What leaves by these events, the first of which has the number `first`."""
    names = list(config.labels)
    events = np.zeros(len(told), EVENT)
    for n, event in enumerate(told):
        earns = event.kind in REWARDS
        events[n]["does"] = (
            IMPRESSION if event.kind == "impression"
            else ACTS if earns or event.kind in names else NOTHING
        )  # fmt: skip
        events[n]["now_us"] = events[n]["at_us"] = round(event.at_s * SECOND)
        events[n]["user_id"], events[n]["item_id"] = event.user, event.item
        events[n]["request_id"] = event.request
        events[n]["history"] = n
        events[n]["position"], events[n]["scenario"] = event.item, event.request
        events[n]["version"], events[n]["score"] = event.item, event.request
        events[n]["kind"] = KINDS.index(event.kind) if event.kind in KINDS else -1
        events[n]["label"] = names.index(event.kind) if event.kind in names else -1
        events[n]["value"] = event.value
        events[n]["reward"] = REWARDS[event.kind] if earns else math.nan
    found = []
    for rows in machine.take(events, histories_of(told)):
        assert len(rows.rows) == len(rows.labels) == len(rows.histories.actions.offsets) - 1
        for n, row in enumerate(rows.rows):
            history = one(rows.histories.actions, n)
            assert history["reward"].tolist() == (history["item"] / 2).tolist()
            assert history["at_us"].tolist() == (history["item"] * SECOND).tolist()
            words = one(rows.histories.searches, n)["id"]
            assert words.tolist() == history["item"][-WORDS:].tolist()
            passed = one(rows.passed_over, n)
            assert row["position"] == row["item_id"]
            assert row["scenario"] == row["request_id"]
            assert (row["version"], row["score"]) == (row["item_id"], row["request_id"])
            known = zip(names, rows.labels[n].tolist(), strict=True)
            found.append(
                Left(
                    first + int(row["event"]),
                    "impression" if row["kind"] == -1 else KINDS[row["kind"]],
                    bool(row["joined"]),
                    int(row["item_id"]),
                    int(row["request_id"]),
                    int(row["user_id"]),
                    row["at_us"] / SECOND,
                    None if np.isnan(row["reward"]) else float(row["reward"]),
                    {name: label for name, label in known if not math.isnan(label)},
                    tuple(history["item"].tolist()),
                    tuple(zip(passed["id"].tolist(), (passed["at_us"] / SECOND).tolist(),
                              strict=True)),
                )
            )  # fmt: skip
    return found


def histories_of(told: Sequence[Told]) -> Histories:
    """What each event's user did, and searched for: the same numbers, so that one tells both."""
    items = np.array([item for event in told for item in event.history], np.int64)
    offsets = np.cumsum([0, *(len(event.history) for event in told)])
    actions, words = np.zeros(len(items), ACTION), np.zeros(len(items), WORD)
    actions["item"] = words["id"] = items
    actions["reward"] = items / 2
    actions["at_us"] = items * SECOND
    words["suggested"] = items % 2
    return Histories(Lists(offsets, actions), Lists(offsets, words))


def one(lists: Lists, number: int) -> Any:
    return lists.records[lists.offsets[number] : lists.offsets[number + 1]]


class Stage:
    """A machine that is told one thing at a time."""

    def __init__(self, config: ImpressionsConfig = CONFIG) -> None:
        self.config = config
        self.machine = Impressions(config, LENGTH, WORDS)
        self._told = 0

    def tell(self, *told: Told) -> list[Left]:
        left = take(self.machine, self.config, told, self._told)
        self._told += len(told)
        return left

    def show(self, at_s: float, item: int = 1, **more: Any) -> list[Left]:
        return self.tell(Told("impression", at_s, item, **more))

    def act(self, kind: str, at_s: float, item: int = 1, **more: Any) -> list[Left]:
        return self.tell(Told(kind, at_s, item, **more))

    def wait_until(self, at_s: float) -> list[Left]:
        return self.tell(Told("nothing", at_s))

    @property
    def counts(self) -> dict[str, int]:
        """Those that are not 0."""
        return {name: count for name, count in self.machine.counts.items() if count}


def labels(left: Sequence[Left]) -> list[Mapping[str, float]]:
    return [row.labels for row in left]


NEGATIVE = {"click": 0.0, "watch": 0.0, "cart": 0.0, "buy": 0.0}  # who does not click


# Positives and negatives


def test_a_positive_leaves_at_once_with_only_that_label() -> None:
    stage = Stage()
    assert stage.show(0, 7, user=5) == []
    assert stage.act("click", 3, 7, user=5) == [
        Left(1, "click", True, 7, 1, 5, 0.0, 0.25, {"click": 1.0}, ())
    ]
    assert labels(stage.act("cart", 4, 7)) == [{"cart": 1.0}]
    assert stage.counts == {"opened": 1, "positives": 2, "open": 1}


def test_a_negative_leaves_when_the_window_has_ended_and_not_before() -> None:
    stage = Stage()
    stage.show(0)
    assert stage.wait_until(10) == []  # a click at this very moment would still count
    assert stage.wait_until(10.000_001) == [
        Left(2, "impression", True, 1, 1, 1, 0.0, None, NEGATIVE, ())
    ]
    assert labels(stage.wait_until(99)) == [{"hide": 0.0}]
    assert stage.counts == {"opened": 1, "negatives": 2, "open": 1}


def test_feedback_at_the_very_end_of_its_window_is_in_time() -> None:
    stage = Stage()
    stage.show(0)
    assert labels(stage.act("click", 10)) == [{"click": 1.0}]
    assert labels(stage.wait_until(11)) == []


def test_what_must_come_after_a_negative_is_negative_with_it() -> None:
    stage = Stage()
    stage.show(0)
    stage.act("click", 1)
    assert stage.wait_until(15) == []
    # No cart within its window: so there will be no purchase either, long before its own ends.
    assert labels(stage.wait_until(21)) == [{"watch": 0.0, "cart": 0.0, "buy": 0.0, "hide": 0.0}]
    assert stage.wait_until(60) == []


def test_a_label_that_must_have_been_positive_is_not_negative() -> None:
    """Who bought has clicked, even if the click was never told; but it is not learnt as one."""
    stage = Stage()
    stage.show(0)
    assert labels(stage.act("buy", 1)) == [{"buy": 1.0}]
    assert stage.wait_until(11) == []
    assert labels(stage.wait_until(21)) == [{"watch": 0.0, "hide": 0.0}]


def test_each_label_has_a_window_of_its_own() -> None:
    stage = Stage()
    stage.show(0)
    stage.act("click", 9)
    stage.act("cart", 19)
    assert labels(stage.wait_until(21)) == [{"watch": 0.0, "hide": 0.0}]
    assert labels(stage.act("buy", 39)) == [{"buy": 1.0}]
    assert stage.wait_until(41) == []


def test_a_graded_label_has_the_value_of_its_event() -> None:
    stage = Stage()
    stage.show(0)
    assert labels(stage.act("watch", 1, value=0.125)) == [{"watch": 0.125}]
    stage.show(0.5, 2)
    assert labels(stage.act("watch", 1.5, 2, value=0.0)) == [{"watch": 0.0}]
    assert stage.counts["positives"] == 2  # also one who did not watch at all has answered


def test_a_late_label_leaves_as_an_additional_row_with_only_that_label() -> None:
    stage = Stage()
    stage.show(0, history=(4, 5))
    assert labels(stage.wait_until(11)) == [NEGATIVE]
    late = stage.act("click", 12, history=(4, 5, 6))
    assert late == [Left(2, "click", True, 1, 1, 1, 0.0, 0.25, {"click": 1.0}, (4, 5))]
    assert labels(stage.act("buy", 13)) == [{"buy": 1.0}]
    assert stage.counts == {"opened": 1, "negatives": 1, "late": 2, "open": 1}


def test_a_second_time_changes_nothing() -> None:
    """Metarank counted an impression twice."""
    stage = Stage()
    stage.show(0, history=(4,))
    assert stage.show(5, history=(4, 5)) == []
    assert labels(stage.act("click", 6)) == [{"click": 1.0}]
    assert stage.act("click", 7) == []
    assert stage.counts == {"opened": 1, "positives": 1, "repeated": 2, "open": 1}
    # Its windows are those of the first time.
    assert labels(stage.wait_until(20.1)) == [{"watch": 0.0, "cart": 0.0, "buy": 0.0, "hide": 0.0}]


def test_the_same_item_in_another_request_is_another_impression() -> None:
    stage = Stage()
    stage.show(0, request=1)
    stage.show(1, request=2)
    (row,) = stage.act("click", 2, request=2)
    assert (row.request, row.at_s) == (2, 1.0)
    assert [row.request for row in stage.wait_until(11.5)] == [1]


def test_windows_that_end_together_leave_in_the_order_of_their_ends() -> None:
    stage = Stage()
    for item in range(1, 6):
        stage.show(item / 10, item)
    left = stage.wait_until(1_000)
    ends = [row.at_s + (10 if "click" in row.labels else 20) for row in left]
    assert len(left) == 10
    assert ends == sorted(ends)


# What was forgotten, and what has no impression


def test_what_comes_after_being_forgotten_is_an_action_without_impression() -> None:
    stage = Stage(replace(CONFIG, wait_s=0.0))
    stage.show(0)
    stage.wait_until(10.5)
    stage.wait_until(21)  # all labels are decided, 30 s of remembering begin
    assert labels(stage.act("click", 51)) == [{"click": 1.0}]
    left = stage.act("cart", 51.5, history=(8,))
    # That it was passed over stays true, although a click came late.
    assert left == [Left(4, "cart", False, 1, 1, 1, 51.5, 0.75, {}, (8,), ((1, 0.0),))]
    assert stage.counts == {"opened": 1, "negatives": 2, "late": 1, "unmatched": 1}


def test_after_being_forgotten_the_same_impression_opens_anew() -> None:
    stage = Stage()
    stage.show(0, history=(4,))
    stage.wait_until(21)
    stage.show(60, history=(5,))
    assert stage.counts["opened"] == 2
    (row,) = stage.act("click", 61)
    assert (row.at_s, row.history) == (60.0, (5,))


def test_an_action_that_is_no_label_or_has_no_request_never_waits() -> None:
    stage = Stage()
    for told in (Told("rate", 1, 3), Told("click", 2, 3, request=-1)):
        (row,) = stage.tell(told)
        assert (row.kind, row.joined, row.labels) == (told.kind, False, {})
    assert stage.counts == {}


def test_a_label_that_earns_no_reward_is_of_use_with_its_impression_only() -> None:
    stage = Stage()
    stage.show(0)
    (row,) = stage.act("hide", 1)
    assert (row.kind, row.labels, row.reward) == ("hide", {"hide": 1.0}, None)
    assert stage.act("hide", 2, request=-1) == []
    assert stage.act("hide", 3, 9) == []
    assert stage.wait_until(8.5) == []
    assert stage.counts == {"opened": 1, "positives": 1, "unmatched": 1, "open": 1}


def test_an_impression_without_a_request_is_counted_and_not_opened() -> None:
    stage = Stage()
    assert stage.show(0, request=-1) == []
    assert stage.wait_until(99) == []
    assert stage.counts == {"without_request": 1}


def test_without_labels_nothing_is_joined() -> None:
    stage = Stage(ImpressionsConfig({}))
    assert stage.show(0) == []
    (row,) = stage.act("click", 1)
    assert (row.joined, row.labels) == (False, {})
    assert stage.counts == {"without_request": 1}


# Feedback that comes first


def test_feedback_waits_for_its_impression_and_is_not_told_of_itself() -> None:
    stage = Stage()
    assert stage.act("click", 0, 7, history=(4,)) == []
    assert stage.counts == {"waiting": 1}
    # By now the click itself is in the history of the user.
    left = stage.show(2, 7, history=(4, 7))
    assert left == [Left(1, "click", True, 7, 1, 1, 2.0, 0.25, {"click": 1.0}, (4,))]
    assert stage.counts["positives"] == 1
    assert stage.wait_until(30) != []  # the windows of the others end as ever


def test_several_feedbacks_wait_in_order_and_leave_together() -> None:
    stage = Stage()
    for n, kind in enumerate(("click", "cart", "click", "watch")):
        value = 0.5 if kind == "watch" else 1.0
        assert stage.act(kind, n / 10, value=value, history=tuple(range(n))) == []
    left = stage.show(2)
    assert labels(left) == [{"click": 1.0}, {"cart": 1.0}, {"watch": 0.5}]
    assert {row.history for row in left} == {()}  # that before the first of them
    assert stage.counts["repeated"] == 1


def test_who_has_waited_long_enough_leaves_as_an_action_without_impression() -> None:
    stage = Stage()
    stage.act("click", 0, 7, user=3, history=(4,))
    stage.act("cart", 1, 7, user=3, history=(4, 7))
    assert stage.wait_until(5) == []
    left = stage.wait_until(5.5)
    assert left == [Left(3, "click", False, 7, 1, 3, 0.0, 0.25, {}, (4,))]
    # The other goes on waiting, and meets its impression.
    assert labels(stage.show(6, 7)) == [{"cart": 1.0}]
    assert stage.counts["unmatched"] == 1


def test_no_more_than_some_feedbacks_wait_for_one_impression() -> None:
    stage = Stage()
    left = [row for n in range(40) for row in stage.act("click", n / 100)]
    assert len(left) == 40 - stage.counts["waiting"] == 24
    assert len(stage.show(1)) == 1


def test_beyond_most_waiting_the_oldest_is_let_go() -> None:
    stage = Stage(replace(CONFIG, most_waiting=2))
    assert stage.act("click", 0, 1) == stage.act("click", 1, 2) == []
    (row,) = stage.act("click", 2, 3)
    assert (row.event, row.item, row.joined) == (2, 1, False)
    assert stage.counts == {"waiting": 2, "unmatched": 1}
    assert labels(stage.show(3, 2)) == [{"click": 1.0}]


def test_what_has_met_its_impression_is_not_due_again() -> None:
    stage = Stage()
    stage.act("click", 0, 1)
    stage.act("click", 1, 2)
    assert stage.machine.next_due_us == 5 * SECOND
    stage.show(2, 1)
    assert stage.machine.next_due_us == 6 * SECOND
    stage.show(2, 2)
    assert stage.machine.next_due_us == 12 * SECOND


# Histories


def test_all_impressions_of_a_request_have_the_history_of_the_first() -> None:
    stage = Stage()
    stage.show(0, 1, history=(4,))
    stage.show(1, 2, history=(4, 5))
    stage.show(1, 3, request=2, history=(4, 5, 6))
    histories = {row.item: row.history for row in stage.wait_until(15)}
    assert histories == {1: (4,), 2: (4,), 3: (4, 5, 6)}


def test_a_history_is_no_longer_than_asked_for_and_keeps_the_newest() -> None:
    stage = Stage()
    long = tuple(range(9))
    (organic,) = stage.act("rate", 0, history=long)
    stage.show(1, history=long)
    (joined,) = stage.act("click", 2, history=(*long, 9))
    stage.act("click", 3, 5, history=long)
    (waited,) = stage.wait_until(9)
    assert organic.history == joined.history == waited.history == (6, 7, 8)


# What was passed over


def test_what_was_shown_in_vain_is_known_once_the_last_label_is_decided() -> None:
    stage = Stage()
    stage.show(0, 7)
    early = stage.act("rate", 10.5, 8)  # its click did not come, but it may yet be hidden
    assert [row.passed_over for row in early] == [(), ()]
    assert [row.passed_over for row in stage.act("rate", 20.5, 8)] == [(), ((7, 0.0),)]
    stage.show(21, 9, request=2)
    (late,) = stage.act("click", 21.5, 7)
    assert late.passed_over == ()  # as it was when it was shown
    (row,) = stage.act("click", 22, 9, request=2)
    assert row.passed_over == ((7, 0.0),)


def test_of_what_anything_came_was_not_passed_over() -> None:
    stage = Stage()
    for item, kind in enumerate(["click", "hide", "buy"]):
        stage.show(0, item)
        stage.act(kind, 1, item)
    stage.show(0, 9)
    stage.wait_until(99)
    assert stage.act("rate", 100, 8)[0].passed_over == ((9, 0.0),)
    assert stage.act("rate", 100, 8, user=2)[0].passed_over == ()


def test_the_newest_of_what_was_passed_over_are_kept_also_of_what_is_sampled_out() -> None:
    config = replace(CONFIG, passed_over=2, keep_negatives=1e-9)
    stage = Stage(config)
    for item in range(5):
        stage.show(item, item)
    assert stage.wait_until(50) == []
    assert stage.act("rate", 51, 8)[0].passed_over == ((3, 3.0), (4, 4.0))


def test_any_number_of_users_may_pass_over_something_at_once() -> None:
    """Of the many there is room for no more than `users`: the last of them."""
    config = replace(CONFIG, passed_over=1, users=1_500)
    machine = Impressions(config, LENGTH, WORDS)
    take(machine, config, [Told("impression", 0, n, n, user=n) for n in range(2_000)])
    asked = [Told("rate", 50, user=n) for n in (0, 499, 500, 1_999)]
    left = take(machine, config, [Told("nothing", 25), *asked])
    assert [row.passed_over for row in left[-4:]] == [(), (), ((500, 0.0),), ((1_999, 0.0),)]
    assert machine.tables()["impressions-passed-over"].num_rows == 1_500


# Bounds


def test_beyond_most_open_the_oldest_is_let_go() -> None:
    stage = Stage(replace(CONFIG, most_open=3, wait_s=0.0))
    for item in range(1, 6):
        stage.show(item, item)
    assert stage.counts == {"opened": 5, "crowded_out": 2, "open": 3}
    assert not stage.act("click", 6, 1)[0].joined
    assert stage.act("click", 6, 3)[0].joined


def test_what_is_only_remembered_goes_first() -> None:
    stage = Stage(replace(CONFIG, most_open=2, wait_s=0.0))
    stage.show(0, 1)
    stage.show(15, 2)
    stage.wait_until(21)  # the first is decided and only remembered
    stage.show(22, 3)
    assert "crowded_out" not in stage.counts
    assert [stage.act("click", 23, item)[0].joined for item in (1, 2, 3)] == [False, True, True]


def test_an_endless_stream_takes_no_more_memory_than_what_is_open_at_once() -> None:
    config = replace(CONFIG, remember_s=0.0)
    machine = Impressions(config, LENGTH, WORDS)
    sizes, saved = [], []
    for turn in range(40):
        told = []
        for n in range(200):
            at_s, request = turn * 10 + n / 20, turn * 1_000 + n
            told.append(Told("impression", at_s, 1, request, history=(n,)))
            told.append(Told("click", at_s, 2, request, history=(n,)))  # waits in vain
        take(machine, config, told)
        sizes.append(machine.nbytes)
        saved.append({name: table.num_rows for name, table in machine.tables().items()})
    assert machine.counts["opened"] == 8_000
    assert machine.counts["open"] < 500
    assert len(set(sizes[5:])) == 1
    assert saved[5] == saved[-1]


def test_an_idle_machine_forgets_everything() -> None:
    stage = Stage()
    for item in range(50):
        stage.show(item / 100, item, request=item % 7)
        stage.act("click", item / 100, item, request=99)
    # It takes four looks: the windows, then what was remembered, one after another.
    for at_s in (100, 200, 300, 400):
        stage.wait_until(at_s)
    assert (stage.counts.get("open"), stage.counts.get("waiting")) == (None, None)
    assert stage.machine.next_due_us is None
    tables = stage.machine.tables()
    assert set(tables["impressions-histories"]["holders"].to_pylist()) == {0}
    for name in ("actions", "searches", "passed_over"):
        assert {len(held) for held in tables[f"impressions-{name}"].column(0).to_pylist()} == {0}


@pytest.mark.parametrize("config", [CONFIG, ImpressionsConfig({"click": Label(10.0)})])
def test_any_number_of_rows_leaves_whole_and_in_order(config: ImpressionsConfig) -> None:
    """Of far more than are written at once, with the history that each had."""
    machine = Impressions(config, LENGTH, WORDS)
    shown = [Told("impression", n / 1e4, n, n, history=(n, n + 1)) for n in range(20_000)]
    assert take(machine, config, shown) == []
    left = take(machine, config, [Told("nothing", 15)])
    assert [row.item for row in left] == list(range(20_000))
    assert all(row.history == (row.item, row.item + 1) for row in left)
    assert all(row.labels["click"] == 0.0 for row in left)
    assert {row.event for row in left} == {0}


def test_rows_stay_what_they_were_while_more_of_them_leave() -> None:
    """Arrow refers to the memory of an array instead of copying it."""
    config = ImpressionsConfig({"click": Label(10.0)})
    machine = Impressions(config, LENGTH, WORDS)
    take(machine, config, [Told("impression", 0, n, n, history=(n,)) for n in range(20_000)])
    events = np.zeros(20_001, EVENT)  # the first ends the windows, the others are organic
    events["now_us"] = 15 * SECOND
    events["item_id"] = np.arange(20_000 - 1, 40_000)
    events["request_id"] = events["label"] = -1
    events["does"][1:] = ACTS
    nothing = Histories(Lists.empty(1, ACTION), Lists.empty(1, WORD))
    parts = list(machine.take(events, nothing))
    assert len(parts) > 4
    items = np.concatenate([part.rows["item_id"] for part in parts])
    assert items.tolist() == list(range(40_000))
    histories = np.concatenate([part.histories.actions.records["item"] for part in parts])
    assert histories.tolist() == list(range(20_000))
    clicks = np.concatenate([part.labels[:, 0] for part in parts])
    assert (clicks[:20_000] == 0).all()
    assert np.isnan(clicks[20_000:]).all()


# Negative downsampling


def test_negatives_are_kept_for_the_same_impressions_whatever_the_label() -> None:
    config = replace(CONFIG, keep_negatives=0.3)
    machine = Impressions(config, LENGTH, WORDS)
    shown = [Told("impression", 0, n % 50, n // 50) for n in range(2_000)]
    take(machine, config, shown)
    clicks = take(machine, config, [Told("nothing", 11)])
    hides = take(machine, config, [Told("nothing", 21)])
    assert [(row.request, row.item) for row in clicks] == [(r.request, r.item) for r in hides]
    assert len(clicks) / len(shown) == pytest.approx(0.3, abs=0.04)
    assert machine.counts["negatives"] == 2 * len(clicks)
    assert machine.counts["sampled_out"] == 2 * (len(shown) - len(clicks))


def test_every_positive_is_kept() -> None:
    config = replace(CONFIG, keep_negatives=0.01)
    machine = Impressions(config, LENGTH, WORDS)
    take(machine, config, [Told("impression", 0, n) for n in range(500)])
    assert len(take(machine, config, [Told("click", 1, n) for n in range(500)])) == 500


@pytest.mark.parametrize("kept", [0.05, 0.3, 1.0])
def test_the_correction_for_downsampling_gives_the_rate_of_the_full_stream(kept: float) -> None:
    """q = p / (p + (1 - p) / w), where p is the rate among samples and w the share kept."""
    config = replace(CONFIG, keep_negatives=kept)
    machine = Impressions(config, LENGTH, WORDS)
    shown, clicked = 60_000, 60_000 // 20
    left = take(machine, config, [Told("impression", 0, n, n) for n in range(shown)])
    left += take(machine, config, [Told("click", 1, n, n) for n in range(0, shown, 20)])
    left += take(machine, config, [Told("nothing", 11)])
    seen = Counter(row.labels["click"] for row in left)
    p = seen[1.0] / (seen[1.0] + seen[0.0])
    corrected = p / (p + (1 - p) / kept)
    assert corrected == pytest.approx(clicked / shown, rel=0.05 if kept < 1 else 1e-12)


# Saved and restored


def restored(machine: Impressions, config: ImpressionsConfig, length: int = LENGTH) -> Impressions:
    return Impressions(config, length, WORDS, Artefact({}, machine.tables()))


def test_a_shorter_history_after_a_restart_keeps_the_newest() -> None:
    stage = Stage()
    stage.show(0, 1, history=(4, 5, 6))
    stage.show(0, 2, request=2, history=(7,))
    stage.act("click", 1, 3, history=(4, 5, 6))
    stage.machine = restored(stage.machine, CONFIG, length=2)
    left = stage.wait_until(12)
    assert {row.item: row.history for row in left} == {1: (5, 6), 2: (7,), 3: (5, 6)}


@pytest.mark.parametrize(
    "changed",
    [
        {"click": Label(10.0)},
        {**LABELS, "wish": Label(20.0)},
        {**LABELS, "click": Label(9.0)},
        dict(reversed(LABELS.items())),
    ],
)
def test_labels_that_are_not_those_of_the_saved_state_are_refused(
    changed: dict[str, Label],
) -> None:
    """Its bits would be read as other labels."""
    stage = Stage()
    stage.show(0)
    with pytest.raises(ConfigError, match=r"labels are not those of the saved state.*--fresh"):
        restored(stage.machine, replace(CONFIG, labels=changed))


def test_smaller_bounds_after_a_restart_are_no_reason_to_lose_rows() -> None:
    stage = Stage()
    for item in range(1, 6):
        stage.show(item / 10, item)
        stage.act("click", item / 10, item + 10)
    small = replace(CONFIG, most_open=2, most_waiting=1)
    stage.machine, stage.config = restored(stage.machine, small), small
    assert [row.item for row in stage.show(1, 9)] == []
    assert stage.counts["crowded_out"] == 1
    assert [row.item for row in stage.act("click", 1, 19)] == [11]
    assert sorted(row.item for row in stage.wait_until(15)) == [2, 3, 4, 5, 9, 12, 13, 14, 15, 19]


# Refused configurations


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"keep_negatives": 0.0}, "keep_negatives = 0.0: a share"),
        ({"keep_negatives": 1.01}, "keep_negatives = 1.01: a share"),
        ({"keep_negatives": math.nan}, "keep_negatives = nan: a share"),
        ({"labels": {f"k{n}": Label(1.0) for n in range(32)}}, "labels: 32 of them, at most 31"),
        ({"labels": {"liked": Label(1.0)}}, "labels.liked: every sample has a label_liked"),
        (
            {"labels": {"click": Label(1.0), "buy": Label(1.0, after="look")}},
            r"labels.buy.after = 'look': labels are click, buy",
        ),
        (
            {"labels": {"click": Label(2.0), "buy": Label(1.0, after="click")}},
            r"labels.buy.after = 'click': its window ends after that of 'buy'",
        ),
        (
            {"labels": {"click": Label(1.0, after="click")}},
            r"labels.click.after = 'click': it comes after itself",
        ),
        (
            {"labels": {"a": Label(1.0, after="b"), "b": Label(1.0, after="a")}},
            r"labels.a.after = 'b': it comes after itself",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"^joiner\.impressions\.{sentence}"):
        ImpressionsConfig(**config)


def test_as_many_labels_as_there_are_bits_work() -> None:
    config = ImpressionsConfig({f"k{n}": Label(10.0 + n) for n in range(31)})
    machine = Impressions(config, LENGTH, WORDS)
    take(machine, config, [Told("impression", 0)])
    left = take(machine, config, [Told("k30", 1), Told("nothing", 99)])
    assert labels(left) == [{"k30": 1.0}, *({f"k{n}": 0.0} for n in range(30))]


def test_followers_are_all_that_come_after() -> None:
    assert CONFIG.followers("click") == {"watch", "cart", "buy"}
    assert CONFIG.followers("cart") == {"buy"}
    assert CONFIG.followers("buy") == CONFIG.followers("hide") == set()


# Against a plain account


class Known(NamedTuple):
    """What is known of a user at a moment."""

    history: tuple[int, ...]
    passed_over: tuple[tuple[int, float], ...]


@dataclass
class Open:
    shown: Told
    known: Known
    own_history: bool  # that of a feedback that was there first: not shared with the request
    due_s: float
    queue: int = 0  # the number of the window that is open, or how many there are: remembered
    decided: set[str] = field(default_factory=set)
    positive: set[str] = field(default_factory=set)


@dataclass
class Waiter:
    feedback: Told
    known: Known
    due_s: float
    met: bool = False  # its place is kept until its time is over


class Account:
    """`streaming.impressions`, as its docstrings tell it, in lists that are searched."""

    def __init__(self, config: ImpressionsConfig, kept: Callable[[int, int], bool]) -> None:
        self.config = config
        self.kept = kept
        self.windows = sorted({label.window_s for label in config.labels.values()})
        self.opened: list[list[Open]] = [[] for _ in (*self.windows, None)]
        self.waiting: list[Waiter] = []
        self.passed_over: OrderedDict[int, tuple[tuple[int, float], ...]] = OrderedDict()
        self.counts: Counter[str] = Counter()
        self.left: list[Left] = []
        self.number = -1

    def tell(self, told: Told) -> None:
        self.number += 1
        while self.settle_first(told.at_s):
            pass
        if told.kind == "impression":
            self.show(told)
        elif told.kind in self.config.labels and told.request != -1:
            self.answer(told)
        elif told.kind in REWARDS:
            self.leave_organic(told, self.known(told))

    def known(self, told: Told) -> Known:
        return Known(told.history[-LENGTH:], self.passed_over.get(told.user, ()))

    def pass_over(self, shown: Told) -> None:
        if not self.config.passed_over:
            return
        if shown.user not in self.passed_over and len(self.passed_over) == self.config.users:
            self.passed_over.popitem(last=False)
        before = self.passed_over.pop(shown.user, ())
        newest = (*before, (shown.item, shown.at_s))[-self.config.passed_over :]
        self.passed_over[shown.user] = newest

    def settle_first(self, now_s: float) -> bool:
        firsts = [(queue[0].due_s, n) for n, queue in enumerate(self.opened) if queue]
        firsts += [(self.waiting[0].due_s, len(self.opened))] if self.waiting else []
        due = min(firsts, default=(now_s, 0))
        if due[0] >= now_s:
            return False
        if due[1] == len(self.opened):
            self.give_up()
        else:
            impression = self.opened[due[1]].pop(0)
            if impression.queue < len(self.windows):
                self.end_window(impression, now_s)
        return True

    def give_up(self) -> None:
        waiter = self.waiting.pop(0)
        if not waiter.met:
            self.counts["unmatched"] += 1
            self.leave_organic(waiter.feedback, waiter.known)

    def end_window(self, impression: Open, now_s: float) -> None:
        labels, positive = self.config.labels, impression.positive
        ended = {n for n in labels if labels[n].window_s == self.windows[impression.queue]}
        ended -= impression.decided
        for name in set(ended):
            if not positive & self.config.followers(name):
                ended |= self.config.followers(name) - impression.decided
        impression.decided |= ended
        impression.queue += 1
        impression.due_s = now_s + self.config.remember_s
        if impression.decided != labels.keys():
            impression.due_s = impression.shown.at_s + self.windows[impression.queue]
        else:
            impression.queue = len(self.windows)
            if not positive:
                self.pass_over(impression.shown)
        self.opened[impression.queue].append(impression)
        negative = {name for name in ended if not positive & self.config.followers(name)}
        if not negative:
            return
        if not self.kept(impression.shown.request, impression.shown.item):
            self.counts["sampled_out"] += 1
            return
        self.counts["negatives"] += 1
        self.leave_joined(impression, "impression", dict.fromkeys(negative, 0.0))

    def show(self, told: Told) -> None:
        if told.request == -1 or not self.config.labels:
            self.counts["without_request"] += 1
            return
        if self.find(told):
            self.counts["repeated"] += 1
            return
        if len(self.all_open()) >= self.config.most_open:
            self.crowd_out()
        waiters = [w for w in self.waiting if not w.met and same(w.feedback, told)]
        shared = [o.known for o in self.all_open()
                  if o.shown.request == told.request and not o.own_history]  # fmt: skip
        known = waiters[0].known if waiters else shared[0] if shared else self.known(told)
        impression = Open(told, known, bool(waiters), told.at_s + self.windows[0])
        self.opened[0].append(impression)
        self.counts["opened"] += 1
        for waiter in waiters:
            waiter.met = True
            self.decide(impression, waiter.feedback)

    def crowd_out(self) -> None:
        if self.opened[-1]:
            self.opened[-1].pop(0)
            return
        self.counts["crowded_out"] += 1
        firsts = [queue[0] for queue in self.opened if queue]
        oldest = min(firsts, key=lambda o: o.shown.at_s)
        self.opened[oldest.queue].remove(oldest)

    def answer(self, told: Told) -> None:
        if impression := self.find(told):
            self.decide(impression, told)
            return
        if self.config.wait_s > 0:
            if len(self.waiting) >= self.config.most_waiting:
                self.give_up()
            if sum(same(w.feedback, told) for w in self.waiting if not w.met) < 16:
                self.waiting.append(Waiter(told, self.known(told), told.at_s + self.config.wait_s))
                return
        self.counts["unmatched"] += 1
        self.leave_organic(told, self.known(told))

    def decide(self, impression: Open, told: Told) -> None:
        if told.kind in impression.positive:
            self.counts["repeated"] += 1
            return
        self.counts["late" if told.kind in impression.decided else "positives"] += 1
        impression.positive.add(told.kind)
        impression.decided.add(told.kind)
        self.leave_joined(impression, told.kind, {told.kind: told.value})

    def leave_joined(self, impression: Open, kind: str, labels: Mapping[str, float]) -> None:
        shown, reward = impression.shown, REWARDS.get(kind)
        self.left.append(
            Left(self.number, kind, True, shown.item, shown.request, shown.user, shown.at_s,
                 reward, labels, *impression.known)
        )  # fmt: skip

    def leave_organic(self, told: Told, known: Known) -> None:
        if told.kind in REWARDS:
            self.left.append(
                Left(self.number, told.kind, False, told.item, told.request, told.user, told.at_s,
                     REWARDS[told.kind], {}, *known)
            )  # fmt: skip

    def find(self, told: Told) -> Open | None:
        return next((o for o in self.all_open() if same(o.shown, told)), None)

    def all_open(self) -> list[Open]:
        return [impression for queue in self.opened for impression in queue]


def same(one: Told, other: Told) -> bool:
    return (one.request, one.item) == (other.request, other.item)


@cache
def kept_at_half(request: int, item: int) -> bool:
    """Which negatives are kept depends on request and item only: so one alone tells."""
    stage = Stage(replace(CONFIG, keep_negatives=0.5))
    stage.show(0, item, request=request)
    return bool(stage.wait_until(11))


STEPS = st.tuples(
    st.sampled_from([0, 0, 0, 0.5, 1, 2, 6, 11, 31]),  # seconds since the event before
    st.sampled_from(["impression"] * 4 + [*LABELS, *LABELS, "rate", "nothing"]),
    st.integers(1, 4),
    st.sampled_from([1, 1, 1, 2, 2, 3, -1]),
    st.integers(1, 2),
    st.sampled_from([0.25, 1.0]),
)
CONFIGS = st.builds(
    ImpressionsConfig,
    st.sampled_from([LABELS, {"click": Label(10.0)}, {"buy": Label(3.0), "click": Label(3.0)}]),
    wait_s=st.sampled_from([0.0, 1.5, 5.0]),
    remember_s=st.sampled_from([0.0, 1.0, 30.0]),
    keep_negatives=st.sampled_from([1.0, 0.5]),
    most_open=st.sampled_from([1, 2, 4, 99]),
    most_waiting=st.sampled_from([1, 2, 99]),
    passed_over=st.sampled_from([0, 1, 3]),
    users=st.sampled_from([1, 99]),
)


def events_of(steps: Sequence[tuple[Any, ...]], config: ImpressionsConfig) -> list[Told]:
    """The steps one after another, each event with a history that no other has."""
    told, now_s = [], 0.0
    for n, (gap_s, kind, item, request, user, value) in enumerate(steps):
        now_s += gap_s
        graded = kind in config.labels and config.labels[kind].graded
        history = tuple(range(10 * n, 10 * n + n % 5))
        told.append(Told(kind, now_s, item, request, user, value if graded else 1.0, history))
    return told


@settings(max_examples=200)
@given(st.lists(STEPS, max_size=60), CONFIGS)
def test_every_row_and_every_count_is_that_of_a_plain_account(
    steps: list[tuple[Any, ...]], config: ImpressionsConfig
) -> None:
    kept = kept_at_half if config.keep_negatives < 1 else lambda *_: True
    account, machine = Account(config, kept), Impressions(config, LENGTH, WORDS)
    for n, told in enumerate(events_of(steps, config)):
        before = len(account.left)
        account.tell(told)
        assert take(machine, config, [told], n) == account.left[before:]
        counts = {name: count for name, count in machine.counts.items() if count}
        held = {"open": len(account.all_open()), "waiting": len(account.waiting)}
        assert counts == {name: count for name, count in (account.counts | held).items() if count}
        due = [o.due_s for queue in account.opened[:-1] for o in queue]
        due += [waiter.due_s for waiter in account.waiting if not waiter.met]
        assert machine.next_due_us == (round(min(due) * SECOND) if due else None)


@settings(max_examples=150)
@given(st.lists(STEPS, max_size=60), CONFIGS, st.lists(st.integers(1, 20)), st.booleans())
def test_any_cut_with_a_restart_at_each_changes_neither_rows_nor_state(
    steps: list[tuple[Any, ...]], config: ImpressionsConfig, sizes: list[int], restarts: bool
) -> None:
    told = events_of(steps, config)
    whole = Impressions(config, LENGTH, WORDS)
    expected = take(whole, config, told)
    machine, found, start = Impressions(config, LENGTH, WORDS), [], 0
    for size in [*sizes, len(told)]:
        found += take(machine, config, told[start : start + size], min(start, len(told)))
        start += size
        if restarts:
            machine = restored(machine, config)
    assert found == expected
    assert machine.counts == whole.counts
    for name, table in machine.tables().items():
        # Compared as text: a feedback without reward holds a NaN.
        assert str(table.to_pydict()) == str(whole.tables()[name].to_pydict()), name
