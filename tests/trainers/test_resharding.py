"""A group's state: the same bits for as many ranks, and not a number lost for any other number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.log import Record
from trainers.arrays import column_matrix, table_arrays
from trainers.evaluation import RankingQuality
from trainers.exchange import Exchange
from trainers.frequency import FrequencyConfig, merge_states
from trainers.kernels import owners
from trainers.peers import Ranks
from trainers.resharding import shard_name
from trainers.trainer import Trainer, TrainerConfig

SameState = Callable[[Artefact, Artefact], None]
Step = Sequence[Record | None]  # of each rank
MAKING = threading.Lock()  # models draw their first weights from torch's one generator
TABLES = ("user", "item", "token")
SHARED = 8


class Train(Protocol):
    def __call__(
        self, ranks: int, steps: Sequence[Step], state: Artefact | None = None
    ) -> Artefact:
        """The state of a group, begun from another's, after these steps."""
        ...


@pytest.fixture(params=[200])
def config(request: pytest.FixtureRequest, small: TrainerConfig) -> TrainerConfig:
    """Tables admit and evict; sketches are so large that no two ids share an entry."""
    table = {
        "optimiser": {"learning_rate": 0.5},
        "admission": {"after": 2, "shared": SHARED, "buckets": 1 << 16},
        "max_rows": request.param,
    }
    options = {**small.options, "table": table, "precision": "float32"}
    return replace(small, options=options, frequency=FrequencyConfig(buckets=1 << 20))


@pytest.fixture
def train(config: TrainerConfig, together: Callable[..., list[Any]], tmp_path: Path) -> Train:
    numbers = count()

    def train(ranks: int, steps: Sequence[Step], state: Artefact | None = None) -> Artefact:
        def of_rank(exchange: Exchange) -> Artefact:
            with MAKING:
                trainer = Trainer(config, "a", state, Ranks(exchange))
            for step in steps:
                trainer.step(step[exchange.rank])
            return trainer.snapshot()

        parts = together(ranks, of_rank)
        path = tmp_path / str(next(numbers))
        shards = {name: shard for part in parts for name, shard in part.shards.items()}
        write_artefact(path, parts[0].meta, shards)
        return read_artefact(path)

    return train


def in_turn(stream: Sequence[Record], ranks: int) -> list[Step]:
    """The records dealt out to so many ranks, the last of which may get one less."""
    padded = [*stream, *[None] * (-len(stream) % ranks)]
    return [padded[start : start + ranks] for start in range(0, len(padded), ranks)]


def of_all(state: Artefact, name: str) -> list[Any]:
    return [state.shards[shard_name(name, rank)] for rank in range(state.meta["ranks"])]


def rows(state: Artefact, name: str) -> dict[int, tuple[Any, ...]]:
    """All that is known of every row of a table; it is with its owner and nowhere else."""
    found: dict[int, tuple[Any, ...]] = {}
    for rank, part in enumerate(of_all(state, f"table-{name}")):
        ids = part["id"].to_numpy()
        assert (owners(ids, state.meta["ranks"], SHARED) == rank).all()
        numbers = (part["seen"].to_pylist(), part["touched"].to_pylist())
        matrices = (column_matrix(part["row"]).tolist(), column_matrix(part["slots"]).tolist())
        for i, *row in zip(ids.tolist(), *numbers, *matrices, strict=True):
            assert i not in found
            found[i] = tuple(row)
    return found


def sums(state: Artefact, name: str, config: TrainerConfig) -> np.ndarray[Any, Any]:
    total = np.zeros(())
    for part in of_all(state, name):
        quality = RankingQuality(config.recall_at)
        quality.load(table_arrays(part))
        total = total + quality.sums()
    return total


def assert_same_whole(one: Artefact, other: Artefact, config: TrainerConfig) -> None:
    """All that two groups know, each in as many parts as it has ranks, is the same to the bit."""
    assert {**one.meta, "ranks": 0} == {**other.meta, "ranks": 0}
    for name in TABLES:
        assert rows(one, name) == rows(other, name)
        mine, theirs = (
            np.max([table_arrays(t)["counts"] for t in of_all(state, f"filter-{name}")], axis=0)
            for state in (one, other)
        )
        assert mine.any()
        np.testing.assert_array_equal(mine, theirs)
    mine, theirs = (
        merge_states([table_arrays(t) for t in of_all(state, "frequency")])
        for state in (one, other)
    )
    for field, array in mine.items():
        np.testing.assert_array_equal(array, theirs[field])
    for name in ("dense", "optimizer", "corpus"):
        assert one.shards[name].equals(other.shards[name], check_metadata=True), name
    for name in ("ranking", "popularity"):
        np.testing.assert_allclose(sums(one, name, config), sums(other, name, config))


# As many ranks


def test_a_group_goes_on_with_the_bits_of_one_that_was_not_stopped(
    train: Train, stream: list[Record], assert_same_state: SameState
) -> None:
    steps = in_turn(stream, 2)
    halfway = train(2, steps[:6])
    assert_same_state(train(2, [], halfway), halfway)
    assert_same_state(train(2, steps[6:], halfway), train(2, steps))


def test_all_ranks_have_the_same_of_what_is_dense(
    config: TrainerConfig, together: Callable[..., list[Any]], stream: list[Record]
) -> None:
    def of_rank(exchange: Exchange) -> tuple[Any, ...]:
        with MAKING:
            trainer = Trainer(config, "a", peers=Ranks(exchange))
        for step in in_turn(stream, 3):
            trainer.step(step[exchange.rank])
        weights = [p.detach().numpy() for p in trainer.model.parameters()]
        return trainer.metrics, trainer.family.corpus.table(), weights, trainer.samples

    (metrics, corpus, weights, samples), *others = together(3, of_rank)
    assert samples == 600
    for theirs in others:
        assert theirs[0] == metrics
        assert theirs[1].equals(corpus, check_metadata=True)
        assert all((a == b).all() for a, b in zip(weights, theirs[2], strict=True))
        assert theirs[3] == samples


# Another number of ranks


@pytest.mark.parametrize("numbers", [[1, 2, 3, 1], [3, 2, 1, 3], [2, 4, 2]])
def test_nothing_is_lost_on_the_way_from_one_number_of_ranks_to_others(
    numbers: list[int], train: Train, stream: list[Record], config: TrainerConfig
) -> None:
    begun = state = train(numbers[0], in_turn(stream, numbers[0]))
    for ranks in numbers[1:]:
        state = train(ranks, [], state)
        assert state.meta["ranks"] == ranks
        assert_same_whole(state, begun, config)


@pytest.mark.parametrize("config", [None], indirect=True, ids=["unbounded"])
def test_a_model_that_moves_from_group_to_group_learns_what_it_would_have_learnt_alone(
    train: Train, stream: list[Record]
) -> None:
    state: Artefact | None = None
    for ranks, part in ((1, stream[:4]), (2, stream[4:8]), (3, stream[8:12]), (1, stream[12:])):
        others = [None] * (ranks - 1)
        state = train(ranks, [[record, *others] for record in part], state)
    assert state is not None
    alone = train(1, [[record] for record in stream])
    for name in TABLES:
        mine, theirs = rows(state, name), rows(alone, name)
        assert mine.keys() == theirs.keys()
        for i, (_, _, row, _) in mine.items():
            # A first step is as large for a gradient near 0 as for any: it magnifies rounding.
            np.testing.assert_allclose(row, theirs[i][2], atol=5e-3)
    assert state.meta["samples"] == alone.meta["samples"]
    assert state.meta["loss"] == pytest.approx(alone.meta["loss"], abs=1e-4)
