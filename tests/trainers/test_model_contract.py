"""What every registered retriever must keep, before learning and after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Items, Jagged, Users
from streaming.errors import ConfigError
from streaming.log import Record
from trainers import models
from trainers.arrays import table_tensors, tensors_table
from trainers.frequency import FrequencyConfig
from trainers.models import RetrievalStep, create
from trainers.negatives import NegativesConfig
from trainers.softmax import Sampling
from trainers.trainer import Trainer, TrainerConfig

# What makes a model small enough for a test, and quick to learn a small world.
OPTIONS: dict[str, dict[str, Any]] = {
    "two_tower": {"width": 16, "hidden": 32, "table": {"optimiser": {"learning_rate": 0.5}}},
}


def registered() -> list[str]:
    """Every name in the registry; asking for one that is not there imports all of them."""
    with pytest.raises(ConfigError):
        create("no such model", {})
    return sorted(models._REGISTRY)


@pytest.fixture(params=registered(), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Any:
    return create(name, OPTIONS.get(name, {}))


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


def jagged(lists: list[list[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged(values, np.cumsum([0] + [len(one) for one in lists]))


def some_users(count: int, seed: int = 0, longest: int = 7) -> Users:
    rng = np.random.default_rng(seed)
    history = jagged(
        [rng.integers(0, 90, rng.integers(0, longest + 1)).tolist() for _ in range(count)]
    )
    rewards = rng.random(len(history.values)).astype(np.float32)
    return Users(rng.integers(0, 2**62, count), history, rewards)


def some_items(count: int, seed: int = 0) -> Items:
    rng = np.random.default_rng(seed)
    tokens = jagged([rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(count)])
    return Items(rng.permutation(count).astype(np.int64), tokens)


def some_step(model: Any, users: int = 12, candidates: int = 30) -> RetrievalStep:
    rng = np.random.default_rng(1)
    return RetrievalStep(
        some_users(users),
        some_items(candidates),
        torch.empty(0, model.width),
        Sampling(
            torch.from_numpy(rng.integers(0, candidates, users)),
            torch.full((1, candidates), -1.0),
            torch.zeros(users, dtype=torch.int64),
            Jagged.of(np.empty(0, np.int64), np.zeros(users, np.int64)),
        ),
        torch.ones(users),
        rng.integers(0, candidates, users),
        np.arange(0, candidates, 3),
        seed=1,
    )


def one_user(users: Users, number: int) -> Users:
    start, end = users.history.offsets[number : number + 2].tolist()
    history = Jagged(users.history.values[start:end], np.array([0, end - start]))
    return Users(users.ids[number : number + 1], history, users.rewards[start:end])


def one_item(items: Items, number: int) -> Items:
    start, end = items.tokens.offsets[number : number + 2].tolist()
    tokens = Jagged(items.tokens.values[start:end], np.array([0, end - start]))
    return Items(items.ids[number : number + 1], tokens)


def assert_of_unit_length(vectors: Tensor) -> None:
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))


def rows(model: Any) -> int:
    return sum(len(table) for table in model.tables.values())


# Before it has learnt anything


@pytest.mark.parametrize("count", [1, 5, 2_000])
def test_predicts_before_learning_for_ids_it_has_never_seen(model: Any, count: int) -> None:
    with torch.no_grad():
        queries, vectors = model.query(some_users(count)), model.items(some_items(count))
    assert queries.ndim == 3
    assert (queries.shape[0], queries.shape[2]) == (count, model.width)
    assert vectors.shape == (count, model.width)
    assert_of_unit_length(queries)
    assert_of_unit_length(vectors)


def test_users_without_a_history_and_items_without_a_description_are_answered(model: Any) -> None:
    nobody = Users(np.array([3, 4]), jagged([[], []]), np.empty(0, np.float32))
    bare = Items(np.array([3, 4]), jagged([[], []]))
    with torch.no_grad():
        assert_of_unit_length(model.query(nobody))
        assert_of_unit_length(model.items(bare))


def test_predicting_gives_no_row_to_any_id(model: Any) -> None:
    model.query(some_users(50))
    model.items(some_items(50))
    assert rows(model) == 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    options = OPTIONS.get(name, {})
    vectors = []
    for process_seed, seed in enumerate((0, 0, 1)):
        torch.manual_seed(process_seed)  # must not matter
        made = create(name, {**options, "seed": seed})
        with torch.no_grad():
            vectors.append((made.query(some_users(9)), made.items(some_items(9))))
    assert torch.equal(vectors[0][0], vectors[1][0])
    assert torch.equal(vectors[0][1], vectors[1][1])
    assert not torch.isclose(vectors[0][0], vectors[2][0]).all(-1).any()
    assert not torch.isclose(vectors[0][1], vectors[2][1]).all(-1).any()


# Pure in its inputs


def arrays(thing: Users | Items) -> list[NDArray[Any]]:
    if isinstance(thing, Users):
        return [thing.ids, thing.history.values, thing.history.offsets, thing.rewards]
    return [thing.ids, thing.tokens.values, thing.tokens.offsets]


def test_the_arrays_it_is_given_are_not_touched(model: Any) -> None:
    step = some_step(model)
    given: list[Any] = [*arrays(step.users), *arrays(step.candidates)]
    sampling = step.sampling
    given += [sampling.positive, sampling.log_inclusion, sampling.level, step.weights]
    before = copy.deepcopy(given)
    model.query(step.users)
    model.items(step.candidates)
    train(model, step)
    for one, kept in zip(given, before, strict=True):
        np.testing.assert_array_equal(one, kept)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_batch_gives_what_each_alone_gives(model: Any, learnt: bool) -> None:
    if learnt:
        train(model, some_step(model))
    users, items = some_users(40, longest=70), some_items(40)
    with torch.no_grad():
        queries, vectors = model.query(users), model.items(items)
        for i in range(40):
            alone = model.query(one_user(users, i))[0], model.items(one_item(items, i))[0]
            torch.testing.assert_close(alone[0], queries[i], rtol=0, atol=1e-6)
            torch.testing.assert_close(alone[1], vectors[i], rtol=0, atol=1e-6)


# Learning


def train(model: Any, step: RetrievalStep) -> Tensor:
    for table in model.tables.values():
        table.training = True
    loss: Tensor = model.loss(step)
    loss.backward()  # type: ignore[no-untyped-call]
    for table in model.tables.values():
        table.step()
        table.training = False
    return loss.detach()


def test_the_loss_is_a_finite_scalar_and_reaches_every_dense_parameter(model: Any) -> None:
    loss = train(model, some_step(model))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_learning_gives_rows_and_lowers_the_loss_of_what_was_learnt(model: Any) -> None:
    step = some_step(model)
    before = train(model, step)
    assert rows(model) > 0
    born = rows(model)
    for _ in range(10):
        after = train(model, step)
    assert after < before
    assert rows(model) == born


def test_what_it_is_made_of_makes_it_again(name: str, model: Any) -> None:
    for _ in range(3):
        train(model, some_step(model))
    again = create(name, OPTIONS.get(name, {}))
    for table_name, table in model.tables.items():
        again.tables[table_name].upsert(*table.touched_since(0))
    again.load_state_dict(table_tensors(tensors_table(model.state_dict())))
    users, items = some_users(30), some_items(30)
    with torch.no_grad():
        assert torch.equal(again.query(users), model.query(users))
        assert torch.equal(again.items(items), model.items(items))


# A world with something to learn: six tastes of 15 items, users keep to one of them.

TASTES, SIZE = 6, 15


def world(micro_batch: Callable[..., Record], steps: int, per_step: int = 64) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    for step in range(steps):
        samples = []
        for taste in rng.integers(TASTES, size=per_step):
            *history, item = (taste * SIZE + rng.permutation(SIZE)[:6]).tolist()
            samples.append(
                {
                    "user_id": int(rng.integers(2**62)),
                    "item_id": item,
                    "history": history,
                    "history_rewards": [1.0] * len(history),
                    "reward": 1.0,
                    "label_liked": True,
                }
            )
        yield micro_batch(samples, step)


def in_own_taste(model: Any) -> float:
    """Which share of the best ten items, history aside, is of the user's own taste."""
    rng = np.random.default_rng(9)
    items = Items(np.arange(TASTES * SIZE), jagged([[]] * (TASTES * SIZE)))
    shares = []
    with torch.no_grad():
        vectors = model.items(items)
        for taste in range(TASTES):
            history = taste * SIZE + rng.permutation(SIZE)[:5]
            stranger = Users(
                np.array([10**9 + taste]),
                Jagged(history, np.array([0, 5])),
                np.ones(5, np.float32),
            )
            scores = (model.query(stranger)[0] @ vectors.T).amax(0)
            scores[torch.from_numpy(history)] = -torch.inf
            best = scores.topk(10).indices.numpy()
            shares.append(np.mean(best // SIZE == taste))
    return float(np.mean(shares))


def learnt(name: str, records: Iterator[Record], seed: int = 0) -> Trainer:
    config = TrainerConfig(
        model=name,
        options=OPTIONS.get(name, {}),
        negatives=NegativesConfig(uniform=32),
        frequency=FrequencyConfig(buckets=1 << 10),
        seed=seed,
    )
    trainer = Trainer(config, "contract")
    for record in records:
        trainer.on_batch([record])
    return trainer


def test_learns_the_tastes_of_users_it_has_never_seen(
    name: str, model: Any, micro_batch: Callable[..., Record]
) -> None:
    untrained = in_own_taste(model)
    taught = in_own_taste(learnt(name, world(micro_batch, steps=40)).model)
    assert untrained < 0.5
    assert taught > 0.9  # by chance it is 1 in 6


def test_learning_is_the_same_to_the_bit_and_depends_on_the_seed(
    name: str, micro_batch: Callable[..., Record]
) -> None:
    vectors = []
    for process_seed, seed in enumerate((0, 0, 1)):
        torch.manual_seed(process_seed)  # must not matter
        trainer = learnt(name, world(micro_batch, steps=3), seed)
        vectors.append(trainer.corpus.vectors.clone())
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])
