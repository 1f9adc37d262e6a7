"""Rows in memory, in a file and on a device: the same answers, and torch's own gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from streaming.kernels import EMPTY
from trainers.optimisers import Kind, OptimiserConfig
from trainers.rows import Birth, DeviceRows, MemoryRows, Rows, Used

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
WIDTH, COUNT = 5, 10
BIRTH = Birth(seed=3, scale=0.5)
KINDS: list[Kind] = ["rowwise_adagrad", "adagrad", "adam", "ftrl", "sgd"]
LISTS = st.lists(st.lists(st.integers(0, COUNT - 1), max_size=5), min_size=1, max_size=6)
# What a step read: rows one by one (None) or in lists.
CALLS = st.lists(st.tuples(st.booleans(), LISTS), min_size=1, max_size=4)
Call = tuple[Ids, Ids | None]
Make = Callable[[OptimiserConfig], Rows]
PLACES = ["memory", "file", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


def as_call(pooled: bool, lists: list[list[int]]) -> Call:
    values = ids(*(value for one in lists for value in one))
    return values, np.cumsum([0] + [len(one) for one in lists]) if pooled else None


@pytest.fixture(params=PLACES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes rows with the first COUNT already written: those that ids 0, 1, ... are born with."""

    def of_kind(optimiser: OptimiserConfig) -> Rows:
        rows: Rows
        if request.param in ("memory", "file"):
            directory = tmp_path if request.param == "file" else None
            rows = MemoryRows(WIDTH, optimiser, BIRTH, directory)
        else:
            rows = DeviceRows(WIDTH, optimiser, BIRTH, torch.device(request.param))
        return with_first_rows(rows, optimiser)

    return of_kind


def with_first_rows(rows: Rows, optimiser: OptimiserConfig) -> Rows:
    rows.reserve(COUNT)
    values = BIRTH.rows(np.arange(COUNT), WIDTH)
    rows.write(np.arange(COUNT), values, optimiser.first_slots(values))
    return rows


def look(rows: Rows, call: Call) -> Tensor:
    values, offsets = call
    if offsets is None:
        return rows.gather(values, values).cpu()
    return rows.pool(values, values, offsets).cpu()


def of_torch(dense: Tensor, call: Call) -> Tensor:
    values, offsets = call
    index = torch.from_numpy(values)
    if offsets is None:
        return F.embedding(index, dense)
    return F.embedding_bag(
        index, dense, torch.from_numpy(offsets), mode="mean", include_last_offset=True
    )


def device_of(rows: Rows) -> torch.device:
    return rows.gather(ids(0), ids(0)).device


def contents(rows: Rows) -> Floats:
    return rows.read(np.arange(COUNT))[0]


# Reading


@given(data=CALLS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_read_and_learnt_is_what_torch_gives_on_a_dense_copy(
    data: list[tuple[bool, list[list[int]]]],
) -> None:
    """With SGD at rate 1, what a row loses is its gradient."""
    config = OptimiserConfig("sgd", learning_rate=1.0)
    kinds = (
        MemoryRows(WIDTH, config, BIRTH),
        DeviceRows(WIDTH, config, BIRTH, torch.device("cpu")),
    )
    calls = [as_call(*call) for call in data]
    for rows in (with_first_rows(kind, config) for kind in kinds):
        dense = torch.from_numpy(contents(rows)).requires_grad_()
        used, total = [], dense.sum() * 0
        for call in calls:
            read = look(rows, call).requires_grad_()
            expected = of_torch(dense, call)
            torch.testing.assert_close(read, expected)
            factors = torch.arange(1.0, 1 + read.numel()).reshape(read.shape).sin()
            (read * factors).square().sum().backward()  # type: ignore[no-untyped-call]
            total = total + (expected * factors).square().sum()
            assert read.grad is not None
            used.append(Used(*call, read.grad))
        total.backward()  # type: ignore[no-untyped-call]
        assert dense.grad is not None
        distinct = rows.learn(used)
        touched = {int(value) for values, _ in calls for value in values}
        assert sorted(distinct.tolist()) == sorted(touched)
        expected = (dense - dense.grad).detach()
        torch.testing.assert_close(torch.from_numpy(contents(rows)), expected, atol=1e-5, rtol=1e-4)


def test_an_id_without_a_row_reads_as_the_row_it_would_be_born_with(make: Make) -> None:
    rows = make(OptimiserConfig())
    asked = ids(77, 2, 2**63 - 1, 77)
    at = ids(EMPTY, 2, EMPTY, EMPTY)
    born = BIRTH.rows(asked, WIDTH)
    np.testing.assert_array_equal(rows.gather(at, asked).cpu(), born)
    pooled = rows.pool(at, asked, ids(0, 1, 1, 4)).cpu()
    np.testing.assert_allclose(pooled, [born[0], 0 * born[0], born[1:].mean(0)], rtol=1e-5)


def test_before_there_is_any_row_everything_is_unborn() -> None:
    for rows in (
        MemoryRows(WIDTH, OptimiserConfig(), BIRTH),
        DeviceRows(WIDTH, OptimiserConfig(), BIRTH, torch.device("cpu")),
    ):
        asked = ids(4, 5)
        found = rows.gather(np.full(2, EMPTY), asked)
        np.testing.assert_array_equal(found, BIRTH.rows(asked, WIDTH))
        assert rows.gather(ids(), ids()).shape == (0, WIDTH)


def test_nothing_and_empty_lists_read_as_zeros(make: Make) -> None:
    rows = make(OptimiserConfig())
    assert rows.gather(ids(), ids()).shape == (0, WIDTH)
    assert rows.pool(ids(), ids(), ids(0)).shape == (0, WIDTH)
    assert not rows.pool(ids(), ids(), ids(0, 0, 0)).any()
    pooled = rows.pool(ids(3), ids(3), ids(0, 0, 1, 1)).cpu().numpy()
    np.testing.assert_array_equal(pooled, [[0] * WIDTH, contents(rows)[3], [0] * WIDTH])


def test_what_was_read_is_a_copy(make: Make) -> None:
    rows = make(OptimiserConfig())
    before = contents(rows).copy()
    rows.gather(ids(1, 2), ids(1, 2)).zero_()
    rows.read(ids(1, 2))[0][:] = 9
    rows.read(ids(1, 2))[1][:] = 9
    np.testing.assert_array_equal(contents(rows), before)


# Learning


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rows_learns_the_same(make: Make, kind: Kind) -> None:
    config = OptimiserConfig(kind, learning_rate=0.1)
    rows, plain = make(config), with_first_rows(MemoryRows(WIDTH, config, BIRTH), config)
    rng = np.random.default_rng(0)
    for _ in range(10):
        used = []
        for pooled in (False, True):
            values = rng.integers(0, COUNT, 12)
            offsets = np.append(np.sort(rng.integers(0, 12, 4)), 12) if pooled else None
            if offsets is not None:
                offsets[0] = 0
            lists = 4 if pooled else 12
            used.append(
                (values, offsets, torch.from_numpy(rng.normal(size=(lists, WIDTH))).float())
            )
        learnt = rows.learn([Used(v, o, g.to(device_of(rows))) for v, o, g in used])
        expected = plain.learn([Used(*one) for one in used])
        assert sorted(learnt.tolist()) == sorted(expected.tolist())
        assert learnt.base is None  # whoever remembers it does not keep all of the step alive
    for one, other in zip(rows.read(np.arange(COUNT)), plain.read(np.arange(COUNT)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_was_used_many_times_is_updated_once_with_the_sum(
    make: Make, kind: Kind
) -> None:
    config = OptimiserConfig(kind)
    together, apart = make(config), make(config)
    device = device_of(together)
    ones = torch.ones(1, WIDTH, device=device)
    together.learn([Used(ids(7), None, 4 * ones)])
    parts = [
        Used(ids(7, 7), None, ones.expand(2, WIDTH)),  # as autograd gives for a sum: not contiguous
        Used(ids(7), ids(0, 0, 1), torch.cat([5 * ones, ones])),
        Used(ids(7, 7), ids(0, 2), ones),
    ]
    assert apart.learn(parts).tolist() == [7]
    np.testing.assert_allclose(contents(apart), contents(together), rtol=1e-6)
    others = np.arange(COUNT) != 7
    np.testing.assert_array_equal(contents(apart)[others], contents(make(config))[others])


def test_steps_leave_nothing_behind_for_later_steps(make: Make) -> None:
    """A first, larger step, and one in which everything was empty, change nothing later."""
    config = OptimiserConfig("sgd", learning_rate=1.0)
    busy, fresh = make(config), make(config)
    device = device_of(busy)
    busy.learn([Used(np.tile(np.arange(COUNT), 9), None, torch.ones(90, WIDTH, device=device))])
    nothing = Used(ids(), ids(0, 0), torch.ones(1, WIDTH, device=device))
    assert busy.learn([nothing]).size == 0
    moved = contents(busy).copy()
    gradient = torch.full((2, WIDTH), 0.25, device=device)
    for rows in (busy, fresh):
        assert sorted(rows.learn([Used(ids(4, 2), None, gradient)]).tolist()) == [2, 4]
    np.testing.assert_allclose(
        moved - contents(busy), BIRTH.rows(np.arange(COUNT), WIDTH) - contents(fresh), atol=1e-6
    )


# Writing and growing


def test_rows_and_slots_are_as_they_were_written_and_survive_growth(make: Make) -> None:
    rows = make(OptimiserConfig("adam"))
    at = ids(3, 0, 4)
    values = np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)
    slots = np.arange(3 * (2 * WIDTH + 1), dtype=np.float32).reshape(3, -1)
    before = contents(rows).copy()
    rows.write(at, values, slots)
    for count in (20, 100_000):
        rows.reserve(count)
        found = rows.read(at)
        np.testing.assert_array_equal(found[0], values)
        np.testing.assert_array_equal(found[1], slots)
    others = np.setdiff1d(np.arange(COUNT), at)
    np.testing.assert_array_equal(rows.read(others)[0], before[others])


# Births


def test_births_are_uniform_in_the_scale_and_unlike_each_other() -> None:
    rows = BIRTH.rows(np.arange(5_000), 16)
    assert np.abs(rows).max() <= 0.5
    assert rows.mean() == pytest.approx(0, abs=0.01)
    assert rows.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.02)
    assert np.abs(np.corrcoef(rows.T) - np.eye(16)).max() < 0.1
    assert len(np.unique(rows, axis=0)) == 5_000


def test_a_birth_depends_on_id_seed_and_column_only() -> None:
    asked = ids(5, -3, 0, 2**63 - 1)
    rows = BIRTH.rows(asked, 6)
    for number, one in enumerate(asked):
        np.testing.assert_array_equal(BIRTH.rows(ids(int(one)), 6)[0], rows[number])
    np.testing.assert_array_equal(BIRTH.rows(asked, 3), rows[:, :3])
    assert not np.isclose(Birth(4, 0.5).rows(asked, 6), rows).any()
    assert not Birth(3, 0.0).rows(asked, 6).any()
