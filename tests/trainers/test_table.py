"""Embedding tables: births, predictions, admission, eviction, consumers, states."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streaming.errors import TableFull
from streaming.kernels import EMPTY
from trainers.admission import AdmissionConfig
from trainers.kernels import oldest_rows
from trainers.optimisers import Kind, OptimiserConfig
from trainers.table import EmbeddingTable, TableConfig

KINDS: list[Kind] = ["rowwise_adagrad", "adagrad", "adam", "ftrl", "sgd"]
OPTIMISER = OptimiserConfig(learning_rate=0.3)
CONFIG = TableConfig("item", width=4, birth_scale=0.5, optimiser=OPTIMISER)
SHARED = 8
ADMITTING = replace(CONFIG, admission=AdmissionConfig(3, shared=SHARED, buckets=1 << 10))
SECOND_US = 1_000_000
LARGEST = 2**63 - 1
Ids = NDArray[np.int64]
LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6)


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


def jagged(lists: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    values = [value for one in lists for value in one]
    return ids(*values), np.cumsum([0] + [len(one) for one in lists])


def learn(table: EmbeddingTable, *calls: Ids, at_s: float | None = None) -> None:
    """One step whose gradients differ by call, column and value."""
    if at_s is not None:
        table.now_us = int(at_s * SECOND_US)
    table.training = True
    loss = torch.zeros(())
    for number, call in enumerate(calls, start=1):
        rows = table(call)
        columns = torch.arange(1.0, 1 + rows.shape[1])
        loss = loss + number * (rows * columns + 0.1).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    table.step()
    table.training = False


def refuse(table: EmbeddingTable, *calls: Ids) -> None:
    """A step that is called and never learnt."""
    table.training = True
    for call in calls:
        table(call)
    table.forget_calls()
    table.training = False


def contents(table: EmbeddingTable) -> dict[int, list[float]]:
    state = table.table()
    return dict(zip(state["id"].to_pylist(), state["row"].to_pylist(), strict=True))


def rows_of(table: EmbeddingTable) -> dict[int, list[float]]:
    """As `contents`, also of a table that does not learn."""
    ids, rows = table.touched_since(0)
    return dict(zip(ids.tolist(), rows.tolist(), strict=True))


def own(table: EmbeddingTable) -> set[int]:
    """The ids that have a row of their own."""
    return {one for one in contents(table) if one >= 0}


def from_file(state: pa.Table) -> pa.Table:
    """A state as it would be read from a file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, state.schema) as writer:
        writer.write_table(state)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


def restored(table: EmbeddingTable) -> EmbeddingTable:
    """Another table that goes on where this one is."""
    other = EmbeddingTable(table.config)
    other.restore(from_file(table.table()), table.filter_state())
    other.now_us = table.now_us
    return other


def same(one: EmbeddingTable, other: EmbeddingTable) -> bool:
    """Whether two tables are equal to the last bit."""
    counted, others = one.filter_state(), other.filter_state()
    return one.table().equals(other.table(), check_metadata=True) and all(
        np.array_equal(counted[name], others[name]) for name in counted | others
    )


# Births


def test_a_row_is_born_from_its_id_and_the_seed_whatever_the_order_and_the_growth() -> None:
    asked = np.random.default_rng(0).choice(2**62, size=300, replace=False)
    at_once, one_by_one, backwards = (EmbeddingTable(CONFIG) for _ in range(3))
    refuse(backwards, np.arange(10_000))
    for table, calls in (
        (at_once, [asked]),
        (one_by_one, [ids(int(one)) for one in asked]),
        (backwards, [asked[::-1].copy()]),
    ):
        refuse(table, *calls)
    born = contents(at_once)
    assert born == contents(one_by_one)
    assert born == {one: row for one, row in contents(backwards).items() if one in born}
    assert len(born) == 300


def test_a_row_is_born_the_same_in_another_process() -> None:
    program = (
        "import numpy as np\n"
        "from trainers.table import EmbeddingTable, TableConfig\n"
        "table = EmbeddingTable(TableConfig('other', width=4, birth_scale=0.5))\n"
        "print(table(np.array([9, 0, 2**63 - 1])).numpy().tobytes().hex())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    here = EmbeddingTable(CONFIG)(ids(9, 0, LARGEST))
    assert answer.stdout.strip() == here.numpy().tobytes().hex()


def test_another_seed_gives_other_rows_and_scale_zero_gives_zeros() -> None:
    asked = np.arange(10)
    one, other = (EmbeddingTable(replace(CONFIG, seed=seed))(asked) for seed in (0, 1))
    assert not torch.isclose(one, other).any()
    assert not EmbeddingTable(replace(CONFIG, birth_scale=0.0))(asked).any()


@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
def test_a_negative_id_gets_no_row(config: TableConfig) -> None:
    """As padding in a column of ids would be; without admission it is refused by name."""
    table = EmbeddingTable(config)
    learn(table, ids(3, 3, 3))
    if config is CONFIG:
        with pytest.raises(ValueError, match="table 'item' was asked for id -1: ids are not neg"):
            refuse(table, ids(5, -1))
    else:
        learn(table, *[ids(5, -1)] * 2)
    assert own(table) == {3}


# Predicting


@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
def test_predicting_never_allocates_and_changes_nothing(config: TableConfig) -> None:
    table = EmbeddingTable(config)
    for _ in range(3):
        learn(table, ids(1, 2, 3))
    before, counted = from_file(table.table()), table.filter_state()
    asked = np.arange(1_000)
    for _ in range(4):
        table(asked)
        table.mean(asked, ids(0, 400, 1_000))
    table.step()
    assert len(table) == 3
    assert table.table().equals(before, check_metadata=True)
    assert all(np.array_equal(counted[name], table.filter_state()[name]) for name in counted)
    np.testing.assert_array_equal(asked, np.arange(1_000))


def test_without_gradients_a_training_table_only_predicts() -> None:
    table = EmbeddingTable(CONFIG)
    table.training = True
    with torch.no_grad():
        table(ids(1, 2))
    assert len(table) == 0


def test_predicting_gives_the_row_that_is_later_born() -> None:
    table = EmbeddingTable(CONFIG)
    predicted = table(ids(8, 5, 8))
    assert not predicted.requires_grad
    table.training = True
    assert torch.equal(predicted, table(ids(8, 5, 8)).detach())
    assert len(table) == 2


def test_what_was_predicted_is_a_copy() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1))
    before = contents(table)
    table(ids(1)).zero_()
    assert contents(table) == before


# Learning


@given(steps=st.lists(st.tuples(LISTS, LISTS, LISTS), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_calls_of_several_features_learn_as_a_dense_matrix_does(
    steps: list[tuple[list[list[int]], list[list[int]], list[list[int]]]],
) -> None:
    """Three features share the table; row-wise Adagrad in double precision is the reference."""
    table = EmbeddingTable(CONFIG)
    weights = table(np.arange(10)).double()
    squares = torch.full((10,), OPTIMISER.first_square, dtype=torch.float64)
    columns = torch.arange(1.0, 5.0)
    for looked_up, averaged, others in steps:
        plain = ids(*(i for one in looked_up for i in one))
        table.training = True
        outputs = (table(plain), table.mean(*jagged(averaged)), table.mean(*jagged(others)))
        torch.cat([(out * columns).sin() for out in outputs]).sum().backward()  # type: ignore[no-untyped-call]
        table.step()
        table.training = False

        leaf = weights.clone().requires_grad_()
        means = [leaf[one].mean(0) if one else leaf[0] * 0 for one in averaged + others]
        together = torch.cat([leaf[torch.from_numpy(plain)], torch.stack(means)])
        (together * columns).sin().sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        squares += leaf.grad.square().mean(1)
        weights -= 0.3 * leaf.grad / (squares.sqrt() + 1e-8).unsqueeze(1)
        torch.testing.assert_close(table(np.arange(10)).double(), weights, rtol=1e-4, atol=1e-5)


def test_an_id_in_several_calls_and_several_times_is_updated_once_with_the_sum() -> None:
    together, apart = EmbeddingTable(CONFIG), EmbeddingTable(CONFIG)
    for table in (together, apart):
        table.training = True
    (together(ids(7)).sum() * 4).backward()  # type: ignore[no-untyped-call]
    together.step()
    loss = apart(ids(7, 7)).sum() + 2 * apart.mean(ids(7, 7), ids(0, 2)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    apart.step()
    assert contents(together) == contents(apart)
    assert apart.clock == 1


def test_a_row_that_gets_no_gradient_stays_and_its_neighbour_learns() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2))
    before = contents(table)
    table.training = True
    rows = table(ids(1, 2))
    rows[1].sum().backward()  # type: ignore[no-untyped-call]
    table.step()
    assert contents(table)[1] == before[1]
    assert contents(table)[2] != before[2]


def test_a_step_without_a_call_is_none_and_a_refused_one_teaches_nothing() -> None:
    table = EmbeddingTable(CONFIG)
    table.step()
    assert table.clock == 0
    learn(table, ids(1, 2))
    before = contents(table)
    table.training = True
    table(ids(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    table.forget_calls()
    table.step()
    assert contents(table) == before
    assert table.clock == 1


@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_empty_lists_gives_zeros(training: bool) -> None:
    table = EmbeddingTable(CONFIG)
    table.training = training
    assert table.mean(ids(), ids(0, 0, 0)).tolist() == [[0.0] * 4] * 2
    assert table.mean(ids(), ids(0)).shape == (0, 4)
    assert table(ids()).shape == (0, 4)
    assert len(table) == 0


# Admission


def test_an_id_gets_a_row_of_its_own_at_its_nth_hit_and_not_before() -> None:
    table = EmbeddingTable(ADMITTING)
    learn(table, ids(1, 2, 1))
    learn(table, ids(2), ids(4))
    assert own(table) == set()
    learn(table, ids(5, 5), ids(1), ids(5))  # the third hits of 1 and 5, over calls and steps
    assert own(table) == {1, 5}
    assert len(table) == 2
    born = EmbeddingTable(CONFIG)
    refuse(table, ids(2))
    assert contents(table)[2] == born(ids(2))[0].tolist()


def test_ids_without_a_row_read_and_teach_a_row_that_they_share() -> None:
    table = EmbeddingTable(ADMITTING)
    strangers = np.arange(100, 1_100)
    before = table(strangers)
    assert len(np.unique(before.numpy(), axis=0)) == SHARED
    learn(table, ids(100))
    shares = (before == before[0]).all(1)
    moved = (table(strangers) != before).any(1)
    assert torch.equal(shares, moved)
    assert 50 < int(shares.sum()) < 250


def test_shared_rows_are_published_under_negative_ids() -> None:
    table = EmbeddingTable(ADMITTING)
    everyone = set(range(-SHARED, 0))
    assert set(table.touched_since(0)[0].tolist()) == set(contents(table)) == everyone
    learn(table, ids(100))
    assert set(table.touched_since(0)[0].tolist()) == everyone
    cursor = table.clock
    learn(table, ids(100))
    (changed,) = table.touched_since(cursor)[0].tolist()
    assert changed in everyone
    learn(table, ids(100))
    assert set(table.touched_since(table.clock - 1)[0].tolist()) == {100}


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
def test_a_replica_that_is_told_everything_predicts_the_same(
    config: TableConfig, learns: bool
) -> None:
    rng = np.random.default_rng(0)
    table = EmbeddingTable(replace(config, max_rows=25))
    replica, cursor = EmbeddingTable(replace(config, learns=learns)), 0
    asked = np.arange(80)
    for number in range(30):
        learn(table, rng.zipf(1.3, 30) % 60, at_s=number)
        if number % 3 == 0:
            replica.remove(table.gone_since(cursor))
            for _ in range(2):  # absolute values: the second time changes nothing
                replica.upsert(*table.touched_since(cursor))
            cursor = table.clock
            assert {one for one in rows_of(replica) if one >= 0} == own(table)
            assert torch.equal(replica(asked), table(asked))
    assert table.evicted > 0


# Eviction


def test_rows_that_nobody_learnt_for_long_enough_go_by_event_time() -> None:
    table = EmbeddingTable(replace(CONFIG, expire_after_s=100))
    learn(table, ids(1, 2, 3), at_s=1_000)
    learn(table, ids(2), at_s=1_060)
    learn(table, ids(4), at_s=1_100)
    assert own(table) == {1, 2, 3, 4}
    table(ids(1))  # predicting is not learning
    learn(table, ids(4), at_s=1_104)
    assert own(table) == {2, 4}
    assert table.gone_since(table.clock - 1).tolist() == [1, 3]
    learn(table, ids(5), at_s=900)  # an event that comes late makes nothing older
    assert own(table) == {2, 4, 5}
    assert table.evicted == 2


def test_an_evicted_id_is_born_again_as_at_first() -> None:
    table = EmbeddingTable(replace(CONFIG, expire_after_s=10, optimiser=OptimiserConfig("adam")))
    once, fresh = EmbeddingTable(table.config), EmbeddingTable(table.config)
    learn(table, ids(1, 2), at_s=0)
    learn(table, ids(3), at_s=20)
    assert own(table) == {3}
    assert torch.equal(table(ids(1)), fresh(ids(1)))
    cursor = table.clock
    learn(table, ids(1), at_s=21)
    learn(once, ids(1), at_s=21)
    assert contents(table)[1] == contents(once)[1]  # its slots are new, too
    assert table.gone_since(cursor).tolist() == []
    assert table.gone_since(0).tolist() == [1, 2]
    assert 1 in table.touched_since(cursor)[0]


@given(
    steps=st.lists(st.lists(st.integers(0, 200), min_size=1, max_size=40), max_size=15),
    most=st.integers(1, 150),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_with_too_many_rows_the_oldest_go_first_and_of_equals_the_smaller_id(
    steps: list[list[int]], most: int
) -> None:
    table, seen = EmbeddingTable(replace(CONFIG, max_rows=most)), dict[int, int]()
    for number, step in enumerate(steps):
        learn(table, ids(*step), at_s=number // 2)
        seen.update(dict.fromkeys(step, number // 2))
        if len(seen) > most:
            oldest = sorted(seen, key=lambda one: (seen[one], one))
            for one in oldest[: len(seen) - most + most // 64]:
                del seen[one]
        assert own(table) == set(seen)
        assert len(table) == len(seen) <= most


@pytest.mark.parametrize("scale", [1, 10**6, 2**58])
def test_the_oldest_rows_are_found_as_by_sorting(scale: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = int(rng.integers(1, 300))
        rows = rng.integers(-1, 50, size)
        rows[rng.integers(size)] = 3
        seen = rng.integers(-5, 6, size) * scale + rng.integers(0, 3, size)
        live = np.flatnonzero(rows != EMPTY)
        count = int(rng.integers(1, live.size + 1))
        edge = np.sort(seen[live])[count - 1]
        older, equals = oldest_rows(rows, seen, count)
        np.testing.assert_array_equal(older, live[seen[live] < edge])
        np.testing.assert_array_equal(equals, live[seen[live] == edge])


def test_endless_new_ids_take_bounded_room() -> None:
    table = EmbeddingTable(replace(CONFIG, max_rows=5_000, width=2))
    for number in range(80):
        learn(table, np.arange(2_000) + 2_000 * number, at_s=number)
        table.settle(table.clock)
    assert 4_000 < len(table) <= 5_000
    assert table.evicted == 160_000 - len(table)
    assert table._map.rows <= 7_000  # at most what a step brings above the bound
    assert table._map.nbytes <= 34 * 7_000 + 8 * 7_000
    assert own(table) == set(range(160_000 - len(table), 160_000))


def test_a_map_that_was_moving_arrives_also_when_only_known_ids_are_learnt() -> None:
    table = EmbeddingTable(TableConfig(width=1))
    while not table._map._old.size:
        fresh = np.arange(len(table), len(table) + 10_000)
        table.upsert(fresh, np.zeros((fresh.size, 1), np.float32))
    known, slots = np.arange(len(table)), table._map._old.size // 2
    for _ in range(slots // known.size + 1):
        learn(table, known)
    assert not table._map._old.size
    assert len(table) == known.size


def test_a_bound_in_bytes_is_a_bound_on_rows() -> None:
    for kind in KINDS:
        config = replace(CONFIG, optimiser=OptimiserConfig(kind), max_bytes=50_000)
        assert config.most_rows == 50_000 // config.row_bytes
        assert replace(config, max_rows=3).most_rows == 3
        assert replace(config, max_rows=10**6).most_rows == config.most_rows
    assert replace(CONFIG, max_bytes=1).most_rows == 1
    assert CONFIG.most_rows is None
    table = EmbeddingTable(replace(CONFIG, max_bytes=CONFIG.row_bytes * 128))
    learn(table, np.arange(300), at_s=0)
    assert len(table) == 128 - 2  # a little less, so as not to look at all rows in every step


def test_shared_rows_are_never_evicted() -> None:
    table = EmbeddingTable(replace(ADMITTING, max_rows=2, expire_after_s=5))
    for number in range(30):
        learn(table, np.repeat(np.arange(5) + 5 * number, 3), at_s=number)
    assert set(range(-SHARED, 0)) <= set(contents(table))
    assert len(table) == len(own(table)) <= 2
    assert (table.gone_since(0) >= 0).all()


# Consumers


class Consumer:
    """Someone who keeps a copy: all columns of the cut, or what is published."""

    def __init__(self, whole: bool) -> None:
        self.whole, self.clock, self.copy = whole, 0, dict[int, Any]()

    def told(self, table: EmbeddingTable) -> dict[int, Any]:
        if self.whole:
            rows = table.table(self.clock).to_pylist()
            return {row["id"]: row for row in rows}
        known, values = table.touched_since(self.clock)
        return dict(zip(known.tolist(), values.tolist(), strict=True))

    def consume(self, table: EmbeddingTable, fails: bool) -> None:
        gone, told = table.gone_since(self.clock).tolist(), self.told(table)
        assert (gone, told) == (table.gone_since(self.clock).tolist(), self.told(table))
        if fails:
            return
        for one in gone:
            self.copy.pop(one, None)
        self.copy.update(told)
        self.clock = table.clock
        assert self.copy == Consumer(self.whole).told(table)


WHO = [slice(0, 1), slice(1, 2), slice(2, 3), slice(3)]  # one of them, or all
FEW = st.lists(st.integers(0, 12), min_size=1, max_size=4)
ACTIONS = st.one_of(
    st.tuples(st.just("learn"), FEW),
    st.tuples(st.just("learn"), FEW),
    st.tuples(st.just("refuse"), FEW),
    st.tuples(st.just("consume"), st.tuples(st.sampled_from(WHO), st.booleans())),
    st.tuples(st.just("settle"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 20)),
)


@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
@given(actions=st.lists(ACTIONS, max_size=40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_consumers_that_fail_now_and_then_lose_nothing(
    config: TableConfig, actions: list[tuple[str, Any]]
) -> None:
    table = EmbeddingTable(replace(config, max_rows=7, expire_after_s=15))
    consumers = [Consumer(whole=True), Consumer(whole=False), Consumer(whole=False)]
    now_s = 0
    for action, value in actions:
        if action == "learn":
            learn(table, ids(*value), at_s=now_s)
        elif action == "refuse":
            refuse(table, ids(*value))
        elif action == "consume":
            for consumer in consumers[value[0]]:
                consumer.consume(table, fails=value[1])
        elif action == "settle":
            table.settle(min(consumer.clock for consumer in consumers))
        else:
            now_s += value
    for consumer in consumers:
        consumer.consume(table, fails=False)


def test_each_is_told_what_changed_since_its_clock_and_nothing_else() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2))
    learn(table, ids(2, 3))
    assert [sorted(table.touched_since(clock)[0].tolist()) for clock in range(3)] == [
        [1, 2, 3],
        [2, 3],
        [],
    ]
    assert [table.table(clock)["id"].to_pylist() for clock in range(3)] == [[1, 2, 3], [2, 3], []]


def test_a_row_that_was_born_and_not_learnt_is_told_to_every_consumer() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1))
    cursor = table.clock
    refuse(table, ids(2))
    assert table.touched_since(cursor)[0].tolist() == [2]
    learn(table, ids(3))
    assert sorted(table.touched_since(cursor)[0].tolist()) == [2, 3]


def test_what_a_consumer_was_told_does_not_change_afterwards() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1))
    _, told = table.touched_since(0)
    copy = told.copy()
    learn(table, ids(1))
    np.testing.assert_array_equal(told, copy)


def test_what_was_settled_or_before_a_restart_can_only_be_told_as_all_that_there_is() -> None:
    table = EmbeddingTable(replace(CONFIG, max_rows=2))
    for number in range(5):
        learn(table, ids(number, number + 1), at_s=number)
    table.settle(3)
    for one in (table, restored(table)):
        with pytest.raises(ValueError, match="of clock 2 nothing is known, only since"):
            one.gone_since(2)
        assert set(one.touched_since(0)[0].tolist()) == {4, 5}
        assert one.gone_since(5).tolist() == []
    assert table.gone_since(3).tolist() == [2, 3]
    assert table.gone_since(4).tolist() == [3]


# States


@pytest.fixture(params=["memory", "file", "device"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[TableConfig], TableConfig]:
    """Where a table keeps its rows: in memory, in a file, or in tensors of torch's."""
    where = {"memory": {}, "file": {"offload": str(tmp_path)}, "device": {"device": "cpu:0"}}
    options: dict[str, Any] = where[request.param]
    return lambda config: replace(config, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("admission", [AdmissionConfig(), ADMITTING.admission])
def test_a_restored_table_goes_on_to_the_same_bits(
    kept: Callable[[TableConfig], TableConfig], kind: Kind, admission: AdmissionConfig
) -> None:
    """Rows get other numbers; what is learnt, admitted and evicted does not depend on them."""
    config = replace(CONFIG, optimiser=OptimiserConfig(kind), admission=admission)
    config = kept(replace(config, max_rows=90, expire_after_s=8.5))  # it looks at every second step
    rng = np.random.default_rng(0)
    unbroken, broken = EmbeddingTable(config), EmbeddingTable(config)
    for number in range(40):
        if number in (0, 7, 8, 23):
            cursor, broken = broken.clock, restored(broken)
        calls = [rng.zipf(1.2, 20) % 150, rng.integers(0, 150, 20)]
        for table in (unbroken, broken):
            learn(table, *calls, at_s=number / 4)
            refuse(table, calls[0] + 1)
        assert same(unbroken, broken)
        np.testing.assert_array_equal(unbroken.gone_since(cursor), broken.gone_since(cursor))
        assert contents(broken) == contents(unbroken)
        for since in (number, broken.clock):
            touched = [sorted(one.touched_since(since)[0]) for one in (unbroken, broken)]
            assert touched[0] == touched[1]
    assert unbroken.evicted > 50


def test_rows_learn_the_same_wherever_they_are_kept(
    kept: Callable[[TableConfig], TableConfig],
) -> None:
    config = replace(CONFIG, max_rows=60, expire_after_s=25)
    table, plain = EmbeddingTable(kept(config)), EmbeddingTable(config)
    rng = np.random.default_rng(0)
    for number in range(30):
        calls = [rng.integers(0, 150, 20), rng.zipf(1.2, 20) % 150]
        for one in (table, plain):
            learn(one, *calls, at_s=number)
    assert own(table) == own(plain)
    if table.config.device == "cpu":
        assert same(table, plain)
    torch.testing.assert_close(table(np.arange(150)), plain(np.arange(150)))


@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
def test_a_table_is_restored_from_before_its_first_step(config: TableConfig) -> None:
    empty, born = EmbeddingTable(config), EmbeddingTable(config)
    refuse(born, ids(4, 4, 4))
    for table in (empty, born):
        other = restored(table)
        assert same(table, other)
        assert sorted(table.touched_since(0)[0]) == sorted(other.touched_since(0)[0])
        assert other.gone_since(0).tolist() == []


def test_a_state_stays_as_it_was_taken() -> None:
    table = EmbeddingTable(ADMITTING)
    learn(table, ids(1, 1, 1, 2))
    state, copy = table.table(), from_file(table.table())
    counts = table.filter_state()["counts"]
    before = counts.copy()
    learn(table, ids(1, 2, 2, 3, 3, 3))
    assert state.equals(copy)
    np.testing.assert_array_equal(counts, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5}, "rows of 4 numbers learnt by adagrad, the recipe says 5 by adagrad"),
        ({"optimiser": OptimiserConfig("sgd")}, "learnt by adagrad, the recipe says 4 by sgd"),
        ({"admission": AdmissionConfig()}, "has 0 shared rows .* set admission as it was"),
        ({"admission": AdmissionConfig(3, shared=5)}, "has 5 shared rows .* one more, -8"),
    ],
)
def test_a_state_of_another_shape_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    config = replace(ADMITTING, optimiser=OptimiserConfig("adagrad"))
    table, other = EmbeddingTable(config), EmbeddingTable(replace(config, **change))
    learn(table, ids(1, 1, 1))
    before = contents(other)
    with pytest.raises(ValueError, match=message):
        other.restore(table.table())
    assert contents(other) == before
    bare = EmbeddingTable(replace(config, optimiser=OptimiserConfig("sgd"))).table()
    with pytest.raises(ValueError, match="learnt by sgd, the recipe says 4 by adagrad"):
        EmbeddingTable(config).restore(bare)


# A replica's writes


@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
@pytest.mark.parametrize("learns", [True, False])
def test_the_parts_of_a_table_make_another_one_like_it(config: TableConfig, learns: bool) -> None:
    table = EmbeddingTable(replace(config, learns=learns))
    count = 40_000
    values = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    table.upsert(np.arange(count), values)
    table.remove(np.arange(0, count, 3))
    other, parts = EmbeddingTable(replace(config, learns=False)), list(table.parts())
    for one in parts:
        other.upsert(*one)
    assert max(len(one[0]) for one in parts) <= 1 << 14
    assert rows_of(other) == rows_of(table)
    assert len(other) == len(table) == count - len(range(0, count, 3))
    assert list(EmbeddingTable(replace(CONFIG, learns=learns)).parts()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_does_not_learn_takes_room_for_its_rows_alone(kind: Kind) -> None:
    config = TableConfig("item", width=64, optimiser=OptimiserConfig(kind), learns=False)
    table, learning = EmbeddingTable(config), EmbeddingTable(replace(config, learns=True))
    asked = np.arange(50)
    for one in (table, learning):
        one.upsert(asked, np.ones((50, 64), np.float32))
    _, slots = table._rows.read(asked)
    assert slots.shape == (50, 0)
    assert config.row_bytes == 4 * 64 + 34 < learning.config.row_bytes
    assert torch.equal(table(np.arange(99)), learning(np.arange(99)))


def test_a_table_that_does_not_learn_refuses_to() -> None:
    table = EmbeddingTable(replace(CONFIG, learns=False))
    table.upsert(ids(1), np.ones((1, 4), np.float32))
    table.training = True
    for call in (
        lambda: table(ids(1)),
        lambda: table.mean(ids(1), ids(0, 1)),
        lambda: table.rows_to_learn(ids(1), ids(1)),
        lambda: table.touched_since(1),
        table.table,
        lambda: table.restore(EmbeddingTable(CONFIG).table()),
    ):
        with pytest.raises(ValueError, match="table 'item' only serves"):
            call()
    assert rows_of(table) == {1: [1.0] * 4}


def test_an_upsert_sets_rows_and_makes_those_that_were_missing() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2))
    before = contents(table)
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(2):
        table.upsert(ids(2, 9), values)
        assert contents(table) == {1: before[1], 2: [0, 1, 2, 3], 9: [4, 5, 6, 7]}
    assert table(ids(9, 1)).tolist() == [[4, 5, 6, 7], before[1]]
    table.upsert(ids(), np.empty((0, 4), np.float32))
    assert len(table) == 3


@pytest.mark.parametrize("config", [CONFIG, ADMITTING])
def test_removing_takes_out_what_is_there_and_nothing_else(config: TableConfig) -> None:
    table, fresh = EmbeddingTable(config), EmbeddingTable(config)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    table.upsert(ids(1, 2, 3), values)
    table.remove(ids(2, 7, 2, 0))
    assert own(table) == {1, 3}
    assert torch.equal(table(ids(2)), fresh(ids(2)))
    assert table(ids(3, 1)).tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    table.remove(ids())
    table.upsert(ids(2), values[:1])
    assert contents(table)[2] == [0, 1, 2, 3]
    assert len(table) == 3


# Room


def test_a_table_grows_to_a_hundred_thousand_rows_and_keeps_what_it_learnt(
    kept: Callable[[TableConfig], TableConfig],
) -> None:
    config = kept(CONFIG)
    table = EmbeddingTable(config)
    learn(table, ids(3, 99_999))
    learnt = contents(table)
    everything = np.arange(100_000)
    for part in np.array_split(everything, 9):
        refuse(table, part)
    assert len(table) == 100_000
    assert table(ids(3, 99_999)).tolist() == list(learnt.values())
    born = EmbeddingTable(CONFIG)(everything).numpy()
    others = np.setdiff1d(everything, ids(3, 99_999))
    np.testing.assert_array_equal(table(everything).numpy()[others], born[others])

    learn(table, everything)  # every slot of every row is in its place
    alone = EmbeddingTable(config)
    learn(alone, ids(3, 99_999))
    learn(alone, ids(3, 77_777, 99_999))
    asked = ids(3, 77_777, 99_999)
    assert torch.equal(table(asked), alone(asked))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Within, no file of this process can become longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_refuses_new_ids_and_the_table_goes_on(tmp_path: Path) -> None:
    table = EmbeddingTable(replace(CONFIG, offload=str(tmp_path)))
    learn(table, ids(1, 2))
    before = from_file(table.table())
    with files_up_to(1 << 18), pytest.raises(TableFull, match="no space for"):
        refuse(table, np.arange(100_000))
    table.training = False
    assert table.table().equals(before, check_metadata=True)
    asked = ids(1, 50_000)
    assert torch.equal(table(asked)[1:], EmbeddingTable(CONFIG)(asked[1:]))
    learn(table, asked)
    assert len(table) == 3


def test_offload_is_for_rows_in_memory() -> None:
    with pytest.raises(ValueError, match="offload is for rows in memory, and device is 'cuda'"):
        TableConfig("item", offload="rows", device="cuda")
