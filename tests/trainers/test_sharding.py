"""A table that ranks share: the same rows as in one table, each with its owner and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from trainers.admission import AdmissionConfig
from trainers.exchange import Exchange, Ids
from trainers.frequency import FrequencyConfig, FrequencyEstimator
from trainers.kernels import distinct_by_owner, owners, share_rows
from trainers.optimisers import OptimiserConfig
from trainers.sharding import ShardedFrequency, ShardedTable, Table, learn
from trainers.table import EmbeddingTable, TableConfig

Together = Callable[..., list[Any]]
Rows = dict[int, list[float]]
RANKS = [1, 2, 3]
IDS = st.lists(st.integers(0, 40) | st.integers(0, (1 << 63) - 1), max_size=60)
DAY_US = 86_400_000_000


# Who owns what


@settings(deadline=None, derandomize=True)
@given(ids=IDS, ranks=st.integers(1, 5), shared=st.sampled_from([0, 1, 2, 7]))
def test_each_id_is_asked_for_once_of_its_owner(ids: list[int], ranks: int, shared: int) -> None:
    array = np.array(ids, np.int64)
    distinct, repeats, index = np.empty((3, array.size), np.int64)
    counts = np.zeros(ranks, np.int64)
    size = distinct_by_owner(array, shared, distinct, repeats, index, counts)
    distinct, repeats = distinct[:size], repeats[:size]
    assert distinct[index].tolist() == ids
    assert len({*distinct.tolist()}) == size
    assert repeats.tolist() == [ids.count(i) for i in distinct.tolist()]
    assert owners(distinct, ranks, shared).tolist() == np.repeat(np.arange(ranks), counts).tolist()
    in_order = [*dict.fromkeys(ids)]
    for part in np.split(distinct, np.cumsum(counts)[:-1]):
        assert part.tolist() == [i for i in in_order if i in part]


@settings(deadline=None, derandomize=True)
@given(ids=IDS, ranks=st.integers(1, 5), shared=st.integers(1, 9))
def test_an_id_and_the_shared_row_that_stands_for_it_have_one_owner(
    ids: list[int], ranks: int, shared: int
) -> None:
    array = np.array(ids, np.int64)
    owner = owners(array, ranks, shared)
    assert ((owner >= 0) & (owner < ranks)).all()
    assert (owner == owners(-1 - share_rows(array, shared), ranks, shared)).all()


@pytest.mark.parametrize("shared", [0, 256])
def test_all_ranks_own_about_as_many_ids(shared: int) -> None:
    for ids in (np.arange(30_000), np.arange(30_000) << 20):
        counts = np.bincount(owners(ids, 3, shared), minlength=3)
        assert abs(counts - 10_000).max() < 600


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_each_shared_row_is_kept_by_one_rank(ranks: int) -> None:
    config = TableConfig(width=4, admission=AdmissionConfig(after=2, shared=7, buckets=8))
    kept = []
    for rank in range(ranks):
        table = EmbeddingTable(config)
        table.keep_shared(rank, ranks)
        ids, _ = table.touched_since(0)
        assert (owners(ids, ranks, 7) == rank).all()
        kept += ids.tolist()
    assert sorted(kept) == list(range(-7, 0))


# One table and many shards

ITEM = TableConfig("item", width=4, optimiser=OptimiserConfig(learning_rate=0.5), seed=3)
USER = TableConfig("user", width=2, optimiser=OptimiserConfig(learning_rate=0.1), birth_scale=0.0)


@dataclass
class Reading:
    """What a rank reads in a step: rows of items, means of items, rows of users."""

    items: Ids
    bag: Ids
    offsets: Ids
    users: Ids

    def loss(self, item: Table, user: Table) -> Tensor:
        rows, means = item(self.items), item.mean(self.bag, self.offsets)
        goal = torch.from_numpy(self.items % 7).float()[:, None]
        return (
            (rows - goal).square().sum()
            + (means - 1).square().sum()
            + (user(self.users) - torch.from_numpy(self.users).float()[:, None]).square().sum()
        )


def reading(rank: int, step: int) -> Reading:
    """Other ids in every rank, some in all of them, and now and then nothing at all."""
    rng = np.random.default_rng([rank, step])
    if (rank + step) % 4 == 3:
        nothing = np.empty(0, np.int64)
        return Reading(nothing, nothing, np.zeros(1, np.int64), nothing)
    lengths = rng.integers(0, 4, size=5)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Reading(
        rng.integers(0, 30, size=rng.integers(0, 20)),
        rng.integers(0, 30, size=offsets[-1]),
        offsets,
        rng.integers(0, 9, size=4 if (rank + step) % 2 else 0),
    )


def alone(
    configs: Sequence[TableConfig], ranks: int, steps: int, learnt: Callable[[int, int], bool]
) -> list[EmbeddingTable]:
    """Tables that read what all ranks read."""
    item, user = tables = [EmbeddingTable(config) for config in configs]
    for step in range(steps):
        for table in tables:
            table.training = True
        losses = [
            reading(rank, step).loss(item, user) for rank in range(ranks) if learnt(rank, step)
        ]
        if losses and (loss := torch.stack(losses).sum()).requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        for table in tables:
            table.training = False
            table.now_us = step * DAY_US
            table.step()
    return tables


def of_rank(
    exchange: Exchange,
    configs: Sequence[TableConfig],
    steps: int,
    learnt: Callable[[int, int], bool] = lambda _rank, _step: True,
) -> list[EmbeddingTable]:
    """The shards of a rank after the same steps."""
    shards = [EmbeddingTable(config) for config in configs]
    for shard in shards:
        shard.keep_shared(exchange.rank, exchange.size)
    item, user = tables = [ShardedTable(shard, exchange) for shard in shards]
    for step in range(steps):
        learnt_by = [learnt(rank, step) for rank in range(exchange.size)]
        for table in tables:
            table.training = True
        loss = reading(exchange.rank, step).loss(item, user)
        if learnt_by[exchange.rank] and loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        for table in tables:
            table.training = False
            table.shard.now_us = step * DAY_US
        exchange.meet()
        learn(tables, learnt_by, exchange)
    return shards


def rows_of(table: EmbeddingTable) -> Rows:
    ids, rows = table.touched_since(0)
    return dict(zip(ids.tolist(), rows.tolist(), strict=True))


def union(shards: Sequence[EmbeddingTable]) -> Rows:
    """The rows of all ranks; no two of them have one in common."""
    parts = [rows_of(shard) for shard in shards]
    together: Rows = {}
    for part in parts:
        assert not together.keys() & part.keys()
        together |= part
    return together


def assert_close(
    some: Mapping[int, Sequence[float]], others: Mapping[int, Sequence[float]]
) -> None:
    assert some.keys() == others.keys()
    for i, row in some.items():
        np.testing.assert_allclose(row, others[i], atol=1e-5, err_msg=str(i))


@pytest.mark.parametrize("ranks", RANKS)
def test_shards_learn_what_one_table_would(ranks: int, together: Together) -> None:
    shards = together(ranks, lambda exchange: of_rank(exchange, [ITEM, USER], steps=9))
    whole = alone([ITEM, USER], ranks, 9, lambda _rank, _step: True)
    for number, table in enumerate(whole):
        parts = [of_one[number] for of_one in shards]
        assert_close(union(parts), rows_of(table))
        for rank, part in enumerate(parts):
            assert (owners(np.array([*rows_of(part)]), ranks, 0) == rank).all()
            assert 0 < len(part) == len(rows_of(part))


def test_what_a_refused_rank_has_read_is_not_learnt_and_what_others_have_is(
    together: Together,
) -> None:
    def learnt(rank: int, step: int) -> bool:
        return rank != step % 3

    shards = together(3, lambda exchange: of_rank(exchange, [ITEM, USER], 9, learnt))
    whole = alone([ITEM, USER], 3, 9, learnt)
    for number, table in enumerate(whole):
        ours, theirs = union([of_one[number] for of_one in shards]), rows_of(table)
        # What the refused have read was born, as in a trainer alone; it is as it was born.
        unborn = np.array([i for i in ours if i not in theirs], np.int64)
        born = EmbeddingTable([ITEM, USER][number])(unborn)
        assert_close(ours, theirs | dict(zip(unborn.tolist(), born.tolist(), strict=True)))


def test_a_step_in_which_all_are_refused_changes_no_row(together: Together) -> None:
    def refuse(exchange: Exchange) -> tuple[Rows, Rows]:
        before = of_rank(exchange, [ITEM, USER], 1)
        after = of_rank(exchange, [ITEM, USER], 2, lambda _rank, step: step == 0)
        return rows_of(before[0]), {i: rows_of(after[0])[i] for i in rows_of(before[0])}

    for before, after in together(2, refuse):
        assert before == after


def test_rows_that_are_predicted_are_nobodys(together: Together) -> None:
    config = TableConfig(width=4, admission=AdmissionConfig(after=2, shared=5, buckets=64))
    ids = np.array([4, 9, 4, 1 << 40])

    def predict(exchange: Exchange) -> tuple[Tensor, Tensor]:
        shard = EmbeddingTable(config)
        shard.keep_shared(exchange.rank, exchange.size)
        table = ShardedTable(shard, exchange)
        before = rows_of(shard), shard.filter_state()["counts"].copy()
        with torch.no_grad():  # as where a trainer scores what it will learn
            table.training = True
            rows = table(ids)
        table.training = False
        means = table.mean(ids, np.array([0, 3, 3, 4]))
        exchange.meet()
        assert len(shard) == shard.clock == 0
        assert rows_of(shard) == before[0]
        assert (shard.filter_state()["counts"] == before[1]).all()
        assert not rows.requires_grad
        assert not means.requires_grad
        return rows, means

    whole = EmbeddingTable(config)
    for rows, means in together(3, predict):
        torch.testing.assert_close(rows, whole(ids), atol=0, rtol=0)
        torch.testing.assert_close(means, whole.mean(ids, np.array([0, 3, 3, 4])))


def test_a_negative_id_is_refused_with_a_sentence(together: Together) -> None:
    def ask(exchange: Exchange) -> None:
        table = ShardedTable(EmbeddingTable(ITEM), exchange)
        if exchange.rank == 1:
            table(np.array([3, -2]))
        exchange.meet()

    with pytest.raises(ValueError, match=r"'item' was asked for id -2: ids are not negative"):
        together(2, ask)


# Rows that come late, and rows that go


@pytest.mark.parametrize(("after", "admitted"), [(4, True), (5, False)])
def test_hits_count_together_in_whichever_rank_they_are(
    after: int, admitted: bool, together: Together
) -> None:
    config = TableConfig(width=4, admission=AdmissionConfig(after=after, shared=6, buckets=1 << 10))
    # 8 is hit four times.
    reads: list[list[list[int]]] = [[[8, 8], [8]], [[70], [71, 8]], [[], []]]

    def read(exchange: Exchange) -> list[int]:
        shard = EmbeddingTable(config)
        shard.keep_shared(exchange.rank, exchange.size)
        table = ShardedTable(shard, exchange)
        for ids in reads[exchange.rank]:
            table.training = True
            loss = table(np.array(ids, np.int64)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            table.training = False
            exchange.meet()
            learn([table], [True] * 3, exchange)
        return [i for i in rows_of(shard) if i >= 0]

    found = [i for ids in together(3, read) for i in ids]
    assert found == ([8] if admitted else [])


def test_what_is_not_admitted_learns_in_one_shared_row(together: Together) -> None:
    config = TableConfig(
        width=4,
        optimiser=OptimiserConfig(learning_rate=0.5),
        admission=AdmissionConfig(after=200, shared=3, buckets=1 << 10),
    )
    whole = alone([config, USER], 3, 6, lambda _rank, _step: True)[0]
    shards = together(3, lambda exchange: of_rank(exchange, [config, USER], 6))
    rows = union([items for items, _ in shards])
    assert rows.keys() == {-1, -2, -3}
    assert_close(rows, rows_of(whole))


def test_every_rank_keeps_to_its_own_bounds(together: Together) -> None:
    config = TableConfig(width=4, max_rows=5, expire_after_s=2 * 86_400.0)
    shards = together(2, lambda exchange: of_rank(exchange, [config, USER], 12))
    for rank, (items, _) in enumerate(shards):
        assert 0 < len(items) <= 5
        assert items.evicted > 0
        gone = items.gone_since(0)
        assert gone.size > 0
        assert (owners(gone, 2, 0) == rank).all()
        seen = items.table()["seen"].to_numpy()
        assert seen.min() >= items.now_us - 3 * DAY_US


# How often ids come by


@pytest.mark.parametrize("ranks", RANKS)
def test_frequencies_are_those_of_one_estimator(ranks: int, together: Together) -> None:
    config = FrequencyConfig(buckets=1 << 16, alpha=0.1)
    rng = np.random.default_rng(0)
    steps = [rng.integers(0, 50, size=8) for _ in range(40)]
    whole = FrequencyEstimator(config)
    for ids in steps:
        whole.update(ids, elapsed=8.0)

    def count(exchange: Exchange) -> list[NDArray[np.float64]]:
        shard = FrequencyEstimator(config)
        frequency = ShardedFrequency(shard, exchange)
        told = []
        for ids in steps:
            frequency.update(ids, elapsed=8.0)
            for _ in range(exchange.rank):  # rank 0 asks nothing, rank 2 asks twice
                told.append(frequency.probability(ids))
            exchange.meet()
        everything = frequency.probability(np.array([7, 7, 3, 99, *range(50)]))
        assert frequency.probability(np.empty(0, np.int64)).shape == (0,)
        exchange.meet()
        assert shard.figures()["frequency_clock"] == 320
        return [*told[:1], everything]

    expected = whole.probability(np.array([7, 7, 3, 99, *range(50)]))
    for rank, told in enumerate(together(ranks, count)):
        np.testing.assert_allclose(told[-1], expected, rtol=1e-6)
        if rank:
            first = FrequencyEstimator(config)
            first.update(steps[0], elapsed=8.0)
            np.testing.assert_allclose(told[0], first.probability(steps[0]), rtol=1e-6)
