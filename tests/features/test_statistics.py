"""Item statistics: numbers one can follow with a pencil."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.statistics import ItemStatistic, ItemStatistics
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.event_columns import Actions

ACTIONS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=60
)


def actions(pairs: Sequence[tuple[int, float]], start: int = 0) -> Actions:
    """Actions of one user on items, each with its reward, at the times `start`, `start` + 1, ..."""
    items = np.array([item for item, _ in pairs], np.int64)
    rewards = np.array([reward for _, reward in pairs], np.float32)
    rows = np.arange(len(pairs))
    return Actions(rows, np.ones_like(items), items, rewards, rows + start)


def restored(statistics: ItemStatistics, half_life: float) -> ItemStatistics:
    return ItemStatistics(half_life, Artefact({}, statistics.tables()))


def test_actions_and_rewards_are_counted() -> None:
    statistics = ItemStatistics()
    changed = statistics.update(actions([(7, 1.0), (8, 0.25), (7, 0.5)]))
    assert changed.tolist() == [7, 8]
    assert statistics.update(actions([(9, 0.0)])).tolist() == [9]
    counted = {item: (s.actions, s.rewards) for item, s in statistics.items.items()}
    assert counted == {7: (2, 1.5), 8: (1, 0.25), 9: (1, 0.0)}


def test_the_newest_time_is_the_latest_of_the_items_own_actions() -> None:
    statistics = ItemStatistics()
    statistics.update(actions([(7, 1.0), (8, 1.0)], start=50))
    statistics.update(actions([(7, 1.0), (9, 1.0)], start=20))
    newest = {item: statistics.get(item).newest_us for item in (7, 8, 9)}
    assert newest == {7: 50, 8: 51, 9: 21}


def test_popularity_halves_with_every_half_life_of_actions_on_anything() -> None:
    statistics = ItemStatistics(half_life=4)
    statistics.update(actions([(7, 1.0)]))
    assert statistics.get(7).popularity == pytest.approx(1)
    statistics.update(actions([(8, 0.0)] * 4))
    assert statistics.get(7).popularity == pytest.approx(1 / 2)
    statistics.update(actions([(8, 0.5)] * 4))
    assert statistics.get(7).popularity == pytest.approx(1 / 4)
    assert statistics.get(8).popularity == pytest.approx(0.5 * sum(2 ** (-n / 4) for n in range(4)))


def test_what_pleases_counts_more_than_what_is_only_touched() -> None:
    statistics = ItemStatistics()
    statistics.update(actions([(1, 0.3), (1, 0.3), (2, 1.0), (3, 0.0)]))
    assert statistics.most_popular(9) == [2, 1, 3]


def test_the_new_overtakes_the_old() -> None:
    statistics = ItemStatistics(half_life=2)
    statistics.update(actions([(1, 1.0)] * 9 + [(2, 1.0)] * 9))
    assert statistics.most_popular(2) == [2, 1]
    assert statistics.most_popular(1) == [2]
    assert statistics.most_popular(0) == []


def test_an_unknown_item_has_no_statistics_and_asking_does_not_make_any() -> None:
    statistics = ItemStatistics()
    assert statistics.get(7) == ItemStatistic(0, 0.0, 0.0)
    assert statistics.items == {}
    assert statistics.most_popular(5) == []


def test_no_actions_change_nothing() -> None:
    statistics = ItemStatistics()
    assert statistics.update(actions([])).tolist() == []
    assert statistics.items == {}


@given(ACTIONS, st.floats(0.3, 100))
def test_popularity_is_the_faded_sum_of_rewards(
    pairs: list[tuple[int, float]], half_life: float
) -> None:
    statistics = ItemStatistics(half_life)
    statistics.update(actions(pairs))
    for item in range(1, 5):
        ages = [len(pairs) - 1 - n for n, pair in enumerate(pairs) if pair[0] == item]
        rewards = [reward for one, reward in pairs if one == item]
        faded = sum(r * 2 ** (-age / half_life) for r, age in zip(rewards, ages, strict=True))
        assert statistics.get(item).popularity == pytest.approx(faded, rel=1e-9)
        assert statistics.get(item).actions == len(ages)


@given(ACTIONS)
def test_many_items_are_told_of_at_once_as_each_alone(pairs: list[tuple[int, float]]) -> None:
    statistics = ItemStatistics(half_life=3)
    statistics.update(actions(pairs, start=7))
    asked = np.arange(6)
    found = statistics.columns(asked)
    columns = (found.actions, found.rewards, found.popularity, found.newest_us)
    for item, row in zip(asked.tolist(), zip(*columns, strict=True), strict=True):
        assert ItemStatistic(*row) == statistics.get(item)
    assert statistics.known(asked).tolist() == [i in statistics.items for i in asked.tolist()]
    assert list(statistics.items) == list(dict.fromkeys(item for item, _ in pairs))
    assert statistics.items.get(5) is None


def test_of_equally_popular_items_the_first_that_came_goes_first() -> None:
    statistics = ItemStatistics(half_life=math.inf)
    statistics.update(actions([(item, 0.5) for item in (5, 3, 9, 1)]))
    assert statistics.most_popular(3) == [5, 3, 9]
    assert statistics.most_popular(9) == [5, 3, 9, 1]


def test_no_more_items_are_kept_than_allowed_and_the_popular_stay() -> None:
    statistics = ItemStatistics(half_life=1_000, most=30)
    for n in range(20):
        passing = [(100 * n + i + 10, 0.1) for i in range(40)]
        changed = statistics.update(actions([(7, 1.0), *passing, (8, 1.0)])).tolist()
        assert all(statistics.get(item).actions > 0 for item in changed)
    assert len(statistics.items) <= 30
    assert set(statistics.most_popular(2)) == {7, 8}
    assert statistics.get(8).actions == 20


def test_another_thread_reads_an_item_whole_while_it_changes() -> None:
    statistics = ItemStatistics(most=64)
    statistics.update(actions([(1, 1.0)]))
    torn, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            one = statistics.get(1)
            if one.actions != one.rewards or not 1 <= one.popularity <= one.actions:
                torn.append(one)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(200):
        statistics.update(actions([*((i + 100 * n, 1.0) for i in range(2, 40)), (1, 1.0)]))
    done.set()
    reader.join()
    assert torn == []


# Growing for ever


def test_rescaling_changes_neither_the_order_nor_what_is_told() -> None:
    """The weight of an action doubles each time: it passes every float within 1,100 actions."""
    statistics = ItemStatistics(half_life=1)
    for n in range(5_000):
        statistics.update(actions([(n % 3, 1.0)]))
        assert 1 <= statistics.get(n % 3).popularity < 8 / 7 + 1e-9
    assert [statistics.get(item).popularity for item in (1, 0, 2)] == pytest.approx(
        [8 / 7, 4 / 7, 2 / 7]
    )
    assert statistics.most_popular(3) == [1, 0, 2]


def test_one_batch_of_many_half_lives_is_as_good_as_many_batches() -> None:
    statistics = ItemStatistics(half_life=1)
    statistics.update(actions([(n % 3, 1.0) for n in range(5_000)]))
    found = [statistics.get(item).popularity for item in (1, 0, 2)]
    assert all(math.isfinite(popularity) for popularity in found)
    assert found == pytest.approx([8 / 7, 4 / 7, 2 / 7])


@given(ACTIONS, st.integers(0, 60), st.sampled_from([0.02, 0.1, 7.0]), st.booleans())
def test_state_does_not_depend_on_how_actions_were_cut_into_batches_or_on_restarts(
    pairs: list[tuple[int, float]], cut: int, half_life: float, restarts: bool
) -> None:
    whole, parts = ItemStatistics(half_life), ItemStatistics(half_life)
    whole.update(actions(pairs))
    parts.update(actions(pairs[:cut]))
    if restarts:
        parts = restored(parts, half_life)
    parts.update(actions(pairs[cut:], start=len(pairs[:cut])))
    assert parts.tables()["statistics"].equals(whole.tables()["statistics"], check_metadata=True)


def test_the_state_survives_the_disk_to_the_last_bit(tmp_path: Path) -> None:
    statistics = ItemStatistics(half_life=3.7)
    statistics.update(actions([(n % 5, 0.1 * n) for n in range(10)]))
    write_artefact(tmp_path / "cut", {}, statistics.tables())
    again = ItemStatistics(3.7, read_artefact(tmp_path / "cut"))
    for one in (statistics, again):
        one.update(actions([(2, 0.3)]))
    assert again.tables()["statistics"].equals(
        statistics.tables()["statistics"], check_metadata=True
    )
