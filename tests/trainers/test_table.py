"""Embedding tables: births, predictions, row-wise Adagrad, cursors, states."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from trainers.table import EmbeddingTable, TableConfig

CONFIG = TableConfig("item", width=4, birth_scale=0.5, learning_rate=0.3)
Ids = NDArray[np.int64]
LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=6)


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


def jagged(lists: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    values = [value for one in lists for value in one]
    return ids(*values), np.cumsum([0] + [len(one) for one in lists])


def learn(table: EmbeddingTable, *calls: Ids, scale: float = 1.0) -> None:
    """One step whose gradients differ by call, column and value."""
    table.training = True
    loss = torch.zeros(())
    for number, call in enumerate(calls, start=1):
        rows = table(call)
        loss = loss + scale * number * (rows * torch.arange(1.0, 1 + rows.shape[1])).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    table.step()
    table.training = False


def contents(table: EmbeddingTable) -> dict[int, list[float]]:
    known, rows = table.touched_since(0)
    return dict(zip(known.tolist(), rows.tolist(), strict=True))


def kept(table: EmbeddingTable) -> pa.Table:
    """All of the state, as it would be read from a file."""
    state, sink = table.table(), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, state.schema) as writer:
        writer.write_table(state)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


# Births


def test_a_row_is_born_from_its_id_and_the_seed_whatever_the_order_and_the_growth() -> None:
    asked = np.random.default_rng(0).choice(2**62, size=300, replace=False)
    at_once, one_by_one, backwards = (EmbeddingTable(CONFIG) for _ in range(3))
    for table in (at_once, one_by_one, backwards):
        table.training = True
    at_once(asked)
    for one in asked:
        one_by_one(ids(int(one)))
    backwards(asked[::-1].copy())
    assert contents(at_once) == contents(one_by_one) == contents(backwards)
    assert len(contents(at_once)) == 300


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
    here = EmbeddingTable(CONFIG)(ids(9, 0, 2**63 - 1))
    assert answer.stdout.strip() == here.numpy().tobytes().hex()


def test_rows_are_born_uniform_within_the_scale_and_unlike_each_other() -> None:
    rows = EmbeddingTable(replace(CONFIG, width=16))(np.arange(5_000)).numpy()
    assert np.abs(rows).max() <= 0.5
    assert rows.mean() == pytest.approx(0, abs=0.01)
    assert rows.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.02)
    assert np.abs(np.corrcoef(rows.T) - np.eye(16)).max() < 0.1
    assert len(np.unique(rows, axis=0)) == 5_000


def test_another_seed_gives_other_rows_and_scale_zero_gives_zeros() -> None:
    asked = np.arange(10)
    one, other = (EmbeddingTable(replace(CONFIG, seed=seed))(asked) for seed in (0, 1))
    assert not torch.isclose(one, other).any()
    assert not EmbeddingTable(replace(CONFIG, birth_scale=0.0))(asked).any()


# Predicting


def test_predicting_never_allocates_and_changes_nothing() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2, 3))
    before = kept(table)
    asked = np.arange(1_000)
    for _ in range(3):
        table(asked)
        table.mean(asked, ids(0, 400, 1_000))
    table.step()
    assert len(table) == 3
    assert table.table().equals(before, check_metadata=True)
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


def reference_step(
    weights: Tensor, squares: Tensor, loss_of: Callable[[Tensor], Tensor], rate: float
) -> None:
    """Row-wise Adagrad on a dense matrix, in double precision."""
    leaf = weights.clone().requires_grad_()
    loss_of(leaf).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    squares += leaf.grad.square().mean(1)
    weights -= rate * leaf.grad / (squares.sqrt() + 1e-8).unsqueeze(1)


@given(steps=st.lists(st.tuples(LISTS, LISTS, LISTS), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_row_wise_adagrad_agrees_with_a_dense_reference(
    steps: list[tuple[list[list[int]], list[list[int]], list[list[int]]]],
) -> None:
    table = EmbeddingTable(CONFIG)
    weights = table(np.arange(10)).double()
    squares = torch.full((10,), CONFIG.first_square, dtype=torch.float64)
    columns = torch.arange(1.0, 5.0)
    for looked_up, averaged, weighted in steps:
        plain = ids(*(i for one in looked_up for i in one))
        values, offsets = jagged(averaged)
        more, ends = jagged(weighted)
        shares = torch.linspace(0.1, 1.0, len(more))

        table.training = True
        outputs = (table(plain), table.mean(values, offsets), table.mean(more, ends, shares))
        loss = sum((out * columns).sin().sum() for out in outputs)
        assert isinstance(loss, Tensor)
        loss.backward()  # type: ignore[no-untyped-call]
        table.step()
        table.training = False

        def loss_of(
            rows: Tensor,
            plain: Ids = plain,
            averaged: list[list[int]] = averaged,
            weighted: list[list[int]] = weighted,
            shares: Tensor = shares,
        ) -> Tensor:
            means = [rows[one].mean(0) if one else rows[0] * 0 for one in averaged]
            left, sums = shares, []
            for one in weighted:
                sums.append((rows[one] * left[: len(one)].unsqueeze(1)).sum(0))
                left = left[len(one) :]
            together = [rows[torch.from_numpy(plain)], torch.stack(means), torch.stack(sums)]
            return torch.cat([(out * columns).sin() for out in together]).sum()

        reference_step(weights, squares, loss_of, CONFIG.learning_rate)
        torch.testing.assert_close(table(np.arange(10)).double(), weights, rtol=1e-4, atol=1e-5)


def test_an_id_in_several_calls_and_several_times_is_updated_once_with_the_sum() -> None:
    together, apart = EmbeddingTable(CONFIG), EmbeddingTable(CONFIG)
    for table in (together, apart):
        table.training = True
    (together(ids(7)).sum() * 3).backward()  # type: ignore[no-untyped-call]
    together.step()
    loss = apart(ids(7, 7)).sum() + apart.mean(ids(7), ids(0, 1)).sum()
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


def test_a_step_without_calls_changes_nothing() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1))
    before = kept(table)
    table.step()
    assert table.table().equals(before, check_metadata=True)


def test_forgotten_calls_leave_the_rows_and_are_not_learnt_later() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2))
    before = contents(table)
    table.training = True
    table(ids(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    table.forget_calls()
    table.step()
    assert contents(table) == before
    learn(table, ids(2))
    assert contents(table)[1] == before[1]


# Means


@given(lists=LISTS, weighted=st.booleans())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_means_of_jagged_lists_agree_with_a_loop(lists: list[list[int]], weighted: bool) -> None:
    table = EmbeddingTable(CONFIG)
    values, offsets = jagged(lists)
    weights = torch.linspace(-1, 1, len(values)) if weighted else None
    means = table.mean(values, offsets, weights)
    assert means.shape == (len(lists), 4)
    for number, one in enumerate(lists):
        rows = table(ids(*one))
        if weights is not None:
            part = weights[int(offsets[number]) : int(offsets[number + 1])]
            expected = (rows * part.unsqueeze(1)).sum(0)
        else:
            expected = rows.mean(0) if one else torch.zeros(4)
        torch.testing.assert_close(means[number], expected)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_but_empty_lists_gives_zeros(training: bool) -> None:
    table = EmbeddingTable(CONFIG)
    table.training = training
    assert table.mean(ids(), ids(0, 0, 0)).tolist() == [[0.0] * 4] * 2
    assert table.mean(ids(), ids(0)).shape == (0, 4)
    assert table(ids()).shape == (0, 4)
    assert len(table) == 0


# Cursors


@given(
    steps=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=12)
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_two_consumers_at_different_clocks_lose_nothing_and_get_nothing_twice(
    steps: list[list[int]],
) -> None:
    table = EmbeddingTable(CONFIG)
    copies: list[dict[int, list[float]]] = [{}, {}]
    cursors = [0, 0]

    def consume(consumer: int) -> set[int]:
        changed, rows = table.touched_since(cursors[consumer])
        cursors[consumer] = table.clock
        copies[consumer].update(zip(changed.tolist(), rows.tolist(), strict=True))
        return set(changed.tolist())

    missed: set[int] = set()
    for number, step in enumerate(steps):
        learn(table, ids(*step))
        missed |= set(step)
        assert consume(0) == set(step)
        if number % 3 == 2:
            assert consume(1) == missed
            missed = set()
    consume(1)
    assert copies == [contents(table)] * 2
    assert consume(0) == consume(1) == set()


def test_a_row_that_was_born_and_not_learnt_is_told_to_every_consumer() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1))
    cursor = table.clock
    table.training = True
    table(ids(2))
    table.forget_calls()
    assert table.touched_since(cursor)[0].tolist() == [2]


def test_what_a_consumer_was_told_does_not_change_afterwards() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1))
    _, told = table.touched_since(0)
    copy = told.copy()
    learn(table, ids(1))
    np.testing.assert_array_equal(told, copy)


# States, upserts, growth


@pytest.mark.parametrize("known", [0, 1, 200])
def test_a_restored_table_goes_on_to_the_same_bits(known: int) -> None:
    rng = np.random.default_rng(0)
    unbroken, restored = EmbeddingTable(CONFIG), EmbeddingTable(CONFIG)
    for _ in range(3 if known else 0):
        learn(unbroken, rng.integers(known, size=40))
    restored.restore(kept(unbroken))
    assert restored.table().equals(unbroken.table(), check_metadata=True)
    for _ in range(3):
        step = rng.integers(300, size=50)
        learn(unbroken, step)
        learn(restored, step)
    assert restored.table().equals(unbroken.table(), check_metadata=True)


def test_a_state_stays_as_it_was_taken() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2))
    state, copy = table.table(), kept(table)
    learn(table, ids(1, 2, 3))
    assert state.equals(copy)


def test_an_upsert_sets_rows_and_makes_those_that_were_missing() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(1, 2))
    before = contents(table)
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    for _ in range(2):  # absolute values: the second time changes nothing
        table.upsert(ids(2, 9), values)
        assert contents(table) == {1: before[1], 2: [0, 1, 2, 3], 9: [4, 5, 6, 7]}
    assert table(ids(9, 1)).tolist() == [[4, 5, 6, 7], before[1]]
    table.upsert(ids(), np.empty((0, 4), np.float32))
    assert len(table) == 3


def test_a_table_grows_to_a_hundred_thousand_rows_and_keeps_what_it_learnt() -> None:
    table = EmbeddingTable(CONFIG)
    learn(table, ids(3, 99_999))
    learnt = contents(table)
    everything = np.arange(100_000)
    table.training = True
    for part in np.array_split(everything, 9):
        table(part)
    table.forget_calls()
    table.training = False
    assert len(table) == 100_000
    assert {i: contents(table)[i] for i in learnt} == learnt
    born = EmbeddingTable(CONFIG)(everything).numpy()
    others = np.setdiff1d(everything, ids(3, 99_999))
    np.testing.assert_array_equal(table(everything).numpy()[others], born[others])

    learn(table, everything)  # every slot of every row is in its place
    alone = EmbeddingTable(CONFIG)
    learn(alone, ids(3, 99_999))
    learn(alone, ids(3, 77_777, 99_999))
    asked = ids(3, 77_777, 99_999)
    assert torch.equal(table(asked), alone(asked))
