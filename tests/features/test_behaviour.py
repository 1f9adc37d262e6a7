"""Behaviour: what a user did last, just before each action."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.behaviour import Behaviour, BehaviourConfig, Scale
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.event_columns import EventColumns, Histories, event_columns
from streaming.ids import stable_id

AsBatch = Callable[..., pa.RecordBatch]
SECOND = 1_000_000
FIRST_US = 1_672_531_200 * SECOND  # when event 0 of these tests happens; one a second follows


@pytest.fixture(scope="session")
def as_columns(as_batch: AsBatch) -> Callable[..., EventColumns]:
    def make(events: Sequence[dict[str, Any]], start: int = 0) -> EventColumns:
        batch = as_batch(events, start)
        return event_columns(batch, np.zeros(batch.num_rows, np.int64))

    return make


AsColumns = Callable[..., EventColumns]


def click(user: str, item: str, **more: Any) -> dict[str, Any]:
    return {"kind": "click", "user_id": user, "item_id": item, **more}


def ids(items: str) -> list[int]:
    return [stable_id(item) for item in items]


def lists(found: Histories) -> list[list[int]]:
    pairs = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [found.items[start:end].tolist() for start, end in pairs]


def rewards(found: Histories) -> list[list[float]]:
    pairs = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [found.rewards[start:end].tolist() for start, end in pairs]


def observe(behaviour: Behaviour, events: EventColumns) -> list[list[int]]:
    """Takes the events; the history that each action saw just before it."""
    actions = behaviour.actions(events)
    return lists(behaviour.observe(actions, actions.rows, actions.user_id))


def history(behaviour: Behaviour, user: str) -> list[int]:
    return lists(behaviour.histories(np.array([stable_id(user)]))[0])[0]


def newest_us(behaviour: Behaviour, user: str) -> int:
    return int(behaviour.histories(np.array([stable_id(user)]))[1][0])


def state(behaviour: Behaviour) -> Artefact:
    return Artefact({}, behaviour.tables())


# Actions


@pytest.mark.parametrize(
    ("kind", "value", "reward"),
    [
        ("click", None, 0.3),
        ("click", 5.0, 0.3),
        ("buy", 99.0, 1.0),
        ("rate", 0.5, 0.0),
        ("rate", 2.0, 0.0),
        ("rate", 2.5, 0.25),
        ("rate", 4.0, 1.0),
        ("rate", 5.0, 1.0),
        ("watch", 0.1, 0.0),
        ("watch", 0.45, 0.5),
        ("watch", 1.0, 1.0),
        ("impression", None, None),
        ("item", 1.0, None),
    ],
)
def test_the_reward_of_an_event(
    as_columns: AsColumns, kind: str, value: float | None, reward: float | None
) -> None:
    event = {"kind": kind, "user_id": "u", "item_id": "i", "value": value}
    found = BehaviourConfig().actions(as_columns([event])).reward.tolist()
    assert found == ([] if reward is None else [pytest.approx(reward)])


def test_a_value_that_is_absent_pleases_like_the_least(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"click": Scale(zero=0.1, one=0.8)})
    assert config.actions(as_columns([click("u", "i")])).reward.tolist() == [0.0]


def test_rewards_are_those_of_the_config(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"wish": 0.9, "rate": Scale(zero=0, one=10)})
    events = [
        {"kind": kind, "user_id": "u", "item_id": "i", "value": 5.0}
        for kind in ("wish", "rate", "click")
    ]
    found = config.actions(as_columns(events))
    assert found.rows.tolist() == [0, 1]
    assert found.reward.tolist() == [pytest.approx(0.9), 0.5]
    assert found.reward.dtype == np.float32


def test_an_action_needs_a_user_and_an_item(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"search": 1.0, "item": 1.0, "click": 1.0})
    events = [
        {"kind": "search", "user_id": "u", "query": "q"},
        {"kind": "item", "item_id": "i"},
        click("u", "i"),
    ]
    assert config.actions(as_columns(events)).rows.tolist() == [2]


# Observing


def test_each_action_sees_its_users_history_just_before_it(as_columns: AsColumns) -> None:
    events = as_columns(
        [
            click("u", "a"),
            {"kind": "impression", "user_id": "u", "item_id": "z"},
            click("v", "b"),
            {"kind": "rate", "user_id": "u", "item_id": "c", "value": 2.5},
            {"kind": "item", "item_id": "c"},
            click("u", "a"),
        ]
    )
    behaviour = Behaviour(BehaviourConfig())
    actions = behaviour.actions(events)
    found = behaviour.observe(actions, actions.rows, actions.user_id)
    assert actions.rows.tolist() == [0, 2, 3, 5]
    assert actions.user_id.tolist() == ids("uvuu")
    assert actions.item_id.tolist() == ids("abca")
    assert actions.reward == pytest.approx([0.3, 0.3, 0.25, 0.3])
    assert actions.at_us.tolist() == [FIRST_US + n * SECOND for n in (0, 2, 3, 5)]
    assert lists(found) == [[], [], ids("a"), ids("ac")]
    assert rewards(found) == [[], [], [pytest.approx(0.3)], [pytest.approx(0.3), 0.25]]


def test_others_than_those_who_act_may_be_asked_for_at_any_row(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    actions = behaviour.actions(as_columns([click("u", "a"), click("v", "b"), click("u", "c")]))
    rows = np.array([0, 0, 1, 1, 2, 3, 9])
    users = np.array(ids("uvuvuux"))
    found = lists(behaviour.observe(actions, rows, users))
    assert found == [[], [], ids("a"), [], ids("a"), ids("ac"), []]


def test_events_without_an_action_change_nothing(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    for events in ([], [{"kind": "item", "item_id": "i"}, {"kind": "user", "user_id": "u"}]):
        assert observe(behaviour, as_columns(events)) == []
    assert len(behaviour) == 0
    assert (history(behaviour, "u"), newest_us(behaviour, "u")) == ([], 0)


def test_asking_for_somebody_does_not_make_him_known(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    observe(behaviour, as_columns([click("u", "a")]))
    found, newest = behaviour.histories(np.array(ids("xux")))
    assert lists(found) == [[], ids("a"), []]
    assert newest.tolist() == [0, FIRST_US, 0]
    assert len(behaviour) == 1


def test_observing_does_not_change_the_histories_given_before(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(length=2))
    observe(behaviour, as_columns([click("u", "a")]))
    now, _ = behaviour.histories(np.array(ids("u")))
    actions = behaviour.actions(as_columns([click("u", "b")], start=1))
    before = behaviour.observe(actions, actions.rows, actions.user_id)
    observe(behaviour, as_columns([click("u", "c"), click("u", "d")], start=2))
    assert lists(now) == lists(before) == [ids("a")]


def test_the_newest_time_is_the_latest_event_time_even_if_events_come_late(
    as_columns: AsColumns,
) -> None:
    behaviour = Behaviour(BehaviourConfig())
    late = [click("u", "a", at="2023-01-01T00:00:09Z"), click("u", "b", at="2023-01-01T00:00:04Z")]
    observe(behaviour, as_columns(late))
    assert newest_us(behaviour, "u") == FIRST_US + 9 * SECOND
    assert history(behaviour, "u") == ids("ab")


# Bounds


def test_memory_is_bounded_by_users_times_length(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(length=3, users=7))
    for start in range(0, 600, 50):
        users = 5 if start < 300 else 40
        events = [click(f"u{n % users}", f"i{n}") for n in range(start, start + 50)]
        observe(behaviour, as_columns(events, start))
        table = behaviour.tables()["behaviour"]
        assert len(behaviour) == table.num_rows == min(users, 7)
        kept = [len(items) for items in table["items"].to_pylist()]
        assert kept == [len(one) for one in table["rewards"].to_pylist()]
        assert max(kept) <= 3


def test_who_has_not_acted_for_longest_is_forgotten_first(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(users=2))
    events = [click("u", "a"), click("v", "b"), click("u", "c"), click("w", "d")]
    observe(behaviour, as_columns(events))
    assert (history(behaviour, "u"), history(behaviour, "v")) == (ids("ac"), [])
    assert newest_us(behaviour, "v") == 0
    # Who comes back begins anew, with nothing of him whose place he takes.
    assert observe(behaviour, as_columns([click("v", "e"), click("v", "f")], start=4)) == [
        [], ids("e"),
    ]  # fmt: skip
    assert history(behaviour, "u") == []


@dataclass
class Past:
    items: list[int]
    rewards: list[float]
    newest_us: int


class Account:
    """What `Behaviour` promises, in a dictionary that is kept in the order of the last action."""

    def __init__(self, config: BehaviourConfig) -> None:
        self.config = config
        self.users: OrderedDict[int, Past] = OrderedDict()

    def act(self, user: int, item: int, reward: float, at_us: int) -> None:
        if user not in self.users and len(self.users) == self.config.users:
            self.users.popitem(last=False)
        past = self.users.setdefault(user, Past([], [], 0))
        self.users.move_to_end(user)
        past.items = [*past.items, item][-self.config.length :]
        past.rewards = [*past.rewards, reward][-self.config.length :]
        past.newest_us = max(past.newest_us, at_us)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"user_id": user, "items": past.items, "rewards": past.rewards,
             "newest_us": past.newest_us}
            for user, past in self.users.items()
        ]  # fmt: skip


ACTIONS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["rate", "rate", "rate", "impression"]),
            "user_id": st.sampled_from("abcdef"),
            "item_id": st.sampled_from("vwxyz"),
            "value": st.sampled_from([2.0, 2.5, 3.0, 4.0]),
            "at": st.sampled_from([f"2023-01-01T00:00:0{n}Z" for n in range(9)]),
        }
    ),
    max_size=40,
)


@given(
    ACTIONS, st.lists(st.integers(1, 12), max_size=5), st.booleans(), st.integers(1, 4),
    st.sampled_from([1, 2, 4, 99]),
)  # fmt: skip
def test_all_that_is_told_is_that_of_a_plain_account(
    as_columns: AsColumns,
    events: list[dict[str, Any]],
    sizes: list[int],
    restarts: bool,
    length: int,
    users: int,
) -> None:
    config = BehaviourConfig(length=length, users=users)
    account, behaviour = Account(config), Behaviour(config)
    start = 0
    for size in [*sizes, len(events)]:
        columns = as_columns(events[start : start + size], start)
        actions = behaviour.actions(columns)
        every_row = np.arange(len(columns))
        found = behaviour.observe(actions, every_row, columns.user_id)
        expected: list[Past] = []
        told = zip(events[start : start + size], columns.user_id.tolist(),
                   columns.item_id.tolist(), columns.at_us.tolist(), strict=True)  # fmt: skip
        for event, user, item, at_us in told:
            expected.append(account.users.get(user, Past([], [], 0)))
            expected[-1] = Past(expected[-1].items, expected[-1].rewards, 0)
            if event["kind"] == "rate":
                account.act(user, item, (event["value"] - 2) / 2, at_us)
        assert lists(found) == [past.items for past in expected]
        assert rewards(found) == [past.rewards for past in expected]
        assert len(behaviour) == len(account.users)
        assert behaviour.tables()["behaviour"].to_pylist() == account.rows()
        start += size
        if restarts:
            behaviour = Behaviour(config, state(behaviour))
    asked = np.array(ids("abcdefg"))
    now, newest = behaviour.histories(asked)
    known = [account.users.get(user, Past([], [], 0)) for user in asked.tolist()]
    assert lists(now) == [past.items for past in known]
    assert newest.tolist() == [past.newest_us for past in known]


# Restarting


def test_the_state_survives_the_disk(as_columns: AsColumns, tmp_path: Path) -> None:
    behaviour = Behaviour(BehaviourConfig(length=3))
    observe(behaviour, as_columns([click("uv"[n % 2], item) for n, item in enumerate("abcdefgh")]))
    write_artefact(tmp_path / "cut", {}, behaviour.tables())
    again = Behaviour(BehaviourConfig(length=3), read_artefact(tmp_path / "cut"))
    more = as_columns([click("u", "x"), click("v", "y"), click("w", "z")], start=8)
    assert observe(again, more) == observe(behaviour, more) == [ids("ceg"), ids("dfh"), []]
    assert again.tables()["behaviour"].equals(behaviour.tables()["behaviour"])


def test_a_shorter_length_after_a_restart_keeps_the_newest(as_columns: AsColumns) -> None:
    long = Behaviour(BehaviourConfig(length=5))
    observe(long, as_columns([click("u", item) for item in "abcde"]))
    short = Behaviour(BehaviourConfig(length=2), state(long))
    assert history(short, "u") == ids("de")
    observe(short, as_columns([click("u", "f")], start=5))
    assert history(short, "u") == ids("ef")


def test_fewer_users_after_a_restart_are_those_who_acted_last(as_columns: AsColumns) -> None:
    many = Behaviour(BehaviourConfig())
    observe(many, as_columns([click(user, "a") for user in "uvwxu"]))
    few = Behaviour(BehaviourConfig(users=2), state(many))
    assert len(few) == 2
    assert [len(history(few, user)) for user in "uvwx"] == [2, 0, 0, 1]


def test_an_empty_state_is_restored(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(), state(Behaviour(BehaviourConfig())))
    assert len(behaviour) == 0
    assert observe(behaviour, as_columns([click("u", "a")])) == [[]]
