"""Behaviour: what a user did last, just before each action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.behaviour import Behaviour, BehaviourConfig, Scale
from streaming.artefact import Artefact
from streaming.ids import stable_id

AsBatch = Callable[..., pa.RecordBatch]
SECOND = 1_000_000


def click(user: str, item: str, **more: Any) -> dict[str, Any]:
    return {"kind": "click", "user_id": user, "item_id": item, **more}


def history(behaviour: Behaviour, user: str) -> list[int]:
    return behaviour.histories[stable_id(user)].items


def ids(items: str) -> list[int]:
    return [stable_id(item) for item in items]


def state(behaviour: Behaviour) -> Artefact:
    return Artefact({}, behaviour.tables())


# Rewards


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
        ("watch", None, 0.0),
        ("impression", None, None),
        ("search", None, None),
        ("unheard of", 1.0, None),
    ],
)
def test_the_reward_of_an_event(kind: str, value: float | None, reward: float | None) -> None:
    found = BehaviourConfig().reward(kind, value)
    assert found == (reward if reward is None else pytest.approx(reward))


def test_rewards_are_those_of_the_config() -> None:
    config = BehaviourConfig(rewards={"hum": 0.9, "rate": Scale(zero=0, one=10)})
    assert config.reward("hum", None) == 0.9
    assert config.reward("rate", 5) == 0.5
    assert config.reward("click", None) is None


# Observing


def test_each_action_sees_its_users_history_just_before_it(as_batch: AsBatch) -> None:
    events = [
        click("u", "a"),
        {"kind": "impression", "user_id": "u", "item_id": "z"},
        click("v", "b"),
        {"kind": "rate", "user_id": "u", "item_id": "c", "value": 2.5},
        {"kind": "item", "item_id": "c"},
        click("u", "a"),
    ]
    known = Behaviour(BehaviourConfig()).observe(as_batch(events))
    assert known.actions.tolist() == [0, 2, 3, 5]
    assert known.user_id.tolist() == ids("uvuu")
    assert known.item_id.tolist() == ids("abca")
    assert known.history.to_pylist() == [[], [], ids("a"), ids("ac")]
    assert known.reward == pytest.approx([0.3, 0.3, 0.25, 0.3])
    assert known.history_rewards.to_pylist() == [
        [], [], [pytest.approx(0.3)], [pytest.approx(0.3), 0.25],
    ]  # fmt: skip


def test_events_without_an_action_change_nothing(as_batch: AsBatch) -> None:
    behaviour = Behaviour(BehaviourConfig())
    for events in ([], [{"kind": "item", "item_id": "i"}, {"kind": "user", "user_id": "u"}]):
        known = behaviour.observe(as_batch(events))
        assert len(known.actions) == len(known.history) == len(known.reward) == 0
        assert known.user_id.dtype == known.item_id.dtype == np.int64
        assert known.history.type == pa.list_(pa.int64())
    assert behaviour.histories == {}


def test_observing_does_not_change_the_columns_given_before(as_batch: AsBatch) -> None:
    behaviour = Behaviour(BehaviourConfig(length=2))
    behaviour.observe(as_batch([click("u", "a")]))
    known = behaviour.observe(as_batch([click("u", "b")], start=1))
    behaviour.observe(as_batch([click("u", "c"), click("u", "d")], start=2))
    assert known.history.to_pylist() == [ids("a")]


@given(items=st.text("abc", max_size=12), length=st.integers(1, 5))
def test_the_newest_actions_are_kept_and_no_more(
    as_batch: AsBatch, items: str, length: int
) -> None:
    behaviour = Behaviour(BehaviourConfig(length=length))
    known = behaviour.observe(as_batch([click("u", item) for item in items]))
    expected = [ids(items[max(0, n - length) : n]) for n in range(len(items))]
    assert known.history.to_pylist() == expected
    if items:
        assert history(behaviour, "u") == ids(items[-length:])


def test_memory_is_bounded_by_users_times_length(as_batch: AsBatch) -> None:
    behaviour = Behaviour(BehaviourConfig(length=3))
    for start in range(0, 200, 50):
        events = [click(f"u{n % 4}", f"i{n}") for n in range(start, start + 50)]
        behaviour.observe(as_batch(events, start))
    table = behaviour.tables()["behaviour"]
    assert table.num_rows == 4
    assert [len(items) for items in table["items"].to_pylist()] == [3] * 4
    assert [len(rewards) for rewards in table["rewards"].to_pylist()] == [3] * 4


def test_the_newest_time_is_the_latest_event_time_even_if_events_come_late(
    as_batch: AsBatch,
) -> None:
    behaviour = Behaviour(BehaviourConfig())
    late = [click("u", "a", at="2023-01-01T00:00:09Z"), click("u", "b", at="2023-01-01T00:00:04Z")]
    behaviour.observe(as_batch(late))
    assert behaviour.histories[stable_id("u")].newest_us == 1_672_531_209 * SECOND
    assert history(behaviour, "u") == ids("ab")


# Restarting


@given(items=st.text("abc", max_size=10), cut=st.integers(0, 10))
def test_a_restored_behaviour_goes_on_as_if_nothing_had_happened(
    as_batch: AsBatch, items: str, cut: int
) -> None:
    events = [
        {"kind": "rate", "user_id": "uv"[n % 2], "item_id": item, "value": 2 + n / 7}
        for n, item in enumerate(items)
    ]
    config = BehaviourConfig(length=3)
    unbroken, first = Behaviour(config), Behaviour(config)
    unbroken.observe(as_batch(events[:cut]))
    first.observe(as_batch(events[:cut]))
    second = Behaviour(config, state(first))
    one = unbroken.observe(as_batch(events[cut:], start=cut))
    other = second.observe(as_batch(events[cut:], start=cut))
    assert one.history.equals(other.history)
    assert one.history_rewards.equals(other.history_rewards)
    assert unbroken.tables()["behaviour"].equals(second.tables()["behaviour"])


def test_a_shorter_length_after_a_restart_is_kept_from_the_next_action_on(
    as_batch: AsBatch,
) -> None:
    long = Behaviour(BehaviourConfig(length=5))
    long.observe(as_batch([click("u", item) for item in "abcde"]))
    short = Behaviour(BehaviourConfig(length=2), state(long))
    short.observe(as_batch([click("u", "f")], start=5))
    assert history(short, "u") == ids("ef")
    assert len(short.histories[stable_id("u")].rewards) == 2


def test_an_empty_state_is_restored() -> None:
    behaviour = Behaviour(BehaviourConfig(), state(Behaviour(BehaviourConfig())))
    assert behaviour.histories == {}
